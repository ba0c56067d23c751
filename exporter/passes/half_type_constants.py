"""Float64 digits of a half-type graph's constants: the graph and its float64 trace in, digits in the metadata out.

A half-type graph is traced in its own types, so that it rounds where the model does; its constants are rounded with
everything else. Here it is walked side by side with a float64 trace of the same model, from the outputs backwards,
casts aside; where both hold a constant in the same place, the float64 one is written into the metadata.

Requires: both graphs are simplified; weights are initializers without values.
Ensures: every constant in the metadata rounds to what the graph holds: one that torch had rounded twice is rounded
    once. Constants whose counterpart is no rounding of the same number (a mask's lowest value) stay as they are.
"""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from kvparity.exporter.contract.spec import FLOAT64_CONSTANTS
from kvparity.exporter.passes.conditions import digits_round, graph_pass, lacks
from kvparity.exporter.passes.float64_to_float32 import MOST
from kvparity.exporter.passes.fold_constants import dtype_of

__all__ = ["keep_digits"]

_EPSILON = {
    ir.DataType.FLOAT16: 2.0**-10,
    ir.DataType.BFLOAT16: 2.0**-7,
    ir.DataType.FLOAT: 2.0**-23,
}
_SMALLEST = {ir.DataType.FLOAT16: 2.0**-24, ir.DataType.BFLOAT16: 2.0**-133, ir.DataType.FLOAT: 2.0**-149}
Wide = npt.NDArray[np.float64]


@graph_pass(requires=[lacks("Constant")], ensures=[digits_round])
def keep_digits(model: ir.Model, wide: ir.Model) -> None:
    """Keep the digits of every constant that both graphs have in one place.

    Args:
        model: The graph in half types.
        wide: The same model's graph in float64; only read.
    """
    kept: dict[str, list[str]] = {}
    known: dict[tuple[str, bytes], ir.Value] = {}
    for node, place, digits in _counterparts(model, wide):
        value = node.inputs[place]
        assert value is not None
        key = (value.name or "", digits.tobytes())
        if key not in known:
            taken = any(name == value.name for name, _ in known)
            known[key] = _own(model, value, len(known)) if taken else value
            _round_once(known[key], digits)
            kept[known[key].name or ""] = [float(x).hex() for x in digits.ravel()]
        node.replace_input_with(place, known[key])
    if kept:
        model.metadata_props[FLOAT64_CONSTANTS] = json.dumps(kept, sort_keys=True)


def _counterparts(model: ir.Model, wide: ir.Model) -> list[tuple[ir.Node, int, Wide]]:
    """Every use of a constant in ``model`` and the float64 values that ``wide`` has there."""
    found: list[tuple[ir.Node, int, Wide]] = []
    pending = [(a, b) for a, b in zip(model.graph.outputs, wide.graph.outputs, strict=True)]
    seen: set[ir.Node] = set()
    while pending:
        narrow, other = (_uncast(value) for value in pending.pop())
        node, twin = narrow.producer(), other.producer()
        if node is None or twin is None or node in seen or not _alike(node, twin):
            continue
        seen.add(node)
        for place, (own, its) in enumerate(zip(node.inputs, twin.inputs, strict=True)):
            if own is None or its is None:
                continue
            pending.append((own, its))
            digits = _digits(own, _uncast(its))
            if digits is not None:
                found.append((node, place, digits))
    return found


def _uncast(value: ir.Value) -> ir.Value:
    """What a value was before casts from one floating-point type to another."""
    node = value.producer()
    while node is not None and node.op_type == "Cast" and node.inputs[0] is not None:
        kinds = (dtype_of(node.inputs[0]), ir.DataType(node.attributes["to"].as_int()))
        if not all(kind is not None and (kind in _EPSILON or kind == ir.DataType.DOUBLE) for kind in kinds):
            break
        value = node.inputs[0]
        node = value.producer()
    return value


def _alike(node: ir.Node, twin: ir.Node) -> bool:
    return (node.domain, node.op_type, len(node.inputs)) == (twin.domain, twin.op_type, len(twin.inputs))


def _digits(own: ir.Value, its: ir.Value) -> Wide | None:
    """The float64 values of a constant, where they are the same numbers with more digits."""
    narrow, exact = own.const_value, its.const_value
    if narrow is None or exact is None or narrow.dtype not in _EPSILON or exact.dtype != ir.DataType.DOUBLE:
        return None
    short, long = np.asarray(narrow.numpy()).astype(np.float64), np.asarray(exact.numpy(), np.float64)
    if short.shape != long.shape or short.size > MOST or np.array_equal(short, long):
        return None
    close = np.abs(short - long) <= np.maximum(_EPSILON[narrow.dtype] * np.abs(long), _SMALLEST[narrow.dtype])
    return long if bool(close.all()) else None


def _own(model: ir.Model, value: ir.Value, number: int) -> ir.Value:
    """A copy of a constant: two numbers that round to the same one had been made one."""
    name = f"{value.name}_digits_{number}"
    tensor = value.const_value
    assert tensor is not None
    copy = ir.Value(name=name, const_value=tensor, shape=value.shape, type=value.type)
    model.graph.register_initializer(copy)
    return copy


def _round_once(value: ir.Value, digits: Wide) -> None:
    tensor = value.const_value
    assert tensor is not None
    value.const_value = ir.tensor(digits.astype(tensor.numpy().dtype), dtype=tensor.dtype, name=value.name)
