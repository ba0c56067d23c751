"""MatMulNBits and GatherBlockQuantized (com.microsoft): products and look-ups in, operators on integer blocks out.

Weights with one scale per row (``--quantize int8-dynamic``) become products of integers instead
(:mod:`exporter.passes.matmul_integer`); experts are unpacked where they are read
(:mod:`exporter.passes.quantized_experts`).

Requires: weights are initializers without values; a linear layer is ``MatMul(x, Transpose(weight))``, an embedding
    ``Gather(weight, ids)``.
Ensures: no initializer of a quantised weight is left; both operators read the same bytes of its codes, in two shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import onnx_ir as ir

from kvparity.exporter.contract.blocks import BLOCKS, SCALES, ZERO_POINTS
from kvparity.exporter.contract.errors import ExportError
from kvparity.exporter.contract.placement import Placement
from kvparity.exporter.contract.spec import ExportOptions
from kvparity.exporter.passes.conditions import graph_pass
from kvparity.exporter.passes.match import replace
from kvparity.exporter.passes.matmul_integer import look_up_rows, multiply_integers
from kvparity.exporter.passes.quantized_experts import unpack_experts

__all__ = ["quantize_products"]

_DOMAIN = "com.microsoft"
_ROWS = ".rows"
_TYPES = {"uint8": ir.DataType.UINT8, "float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16}


@dataclass(frozen=True)
class _Weight:
    """A quantised weight: its placed parts, its size, its code's bits, its block's columns.

    ``leading`` is (experts,) for the weights of experts, whose rows are counted per expert.
    """

    name: str
    parts: Mapping[str, Placement]
    rows: int
    columns: int
    bits: int
    block_size: int
    leading: tuple[int, ...] = ()

    @property
    def blob(self) -> int:
        return self.block_size * self.bits // 8


@graph_pass()
def quantize_products(model: ir.Model, placements: Mapping[str, Placement], options: ExportOptions) -> None:
    """Read every quantised weight from its codes.

    Args:
        model: The graph.
        placements: Where the parts of quantised weights lie, and all other weights.
        options: ``accuracy_level`` is MatMulNBits' own; ``quantize`` says whether weights of one scale per row are
            multiplied as integers.

    Raises:
        ExportError: A quantised weight is used in another way.
    """
    for name in list(model.graph.initializers):
        if name + BLOCKS not in placements:
            continue
        value = model.graph.initializers[name]
        weight = _weight(name, value, placements)
        if weight.leading:
            unpack_experts(model, value, partial(_unpack, model, weight))
        for use in list(value.uses()):
            _rewrite(model, use.node, value, weight, options)
        del model.graph.initializers[name]
        model.opset_imports.setdefault(_DOMAIN, 1)


def _weight(name: str, value: ir.Value, placements: Mapping[str, Placement]) -> _Weight:
    assert value.shape is not None
    *leading, rows, columns = (int(dim) for dim in value.shape.numpy())
    parts = {part: placements[name + part] for part in (BLOCKS, SCALES, ZERO_POINTS) if name + part in placements}
    bits = 8 * parts[BLOCKS].shape[1] // columns
    return _Weight(name, parts, rows, columns, bits, columns // parts[SCALES].shape[1], tuple(leading))


def _unpack(model: ir.Model, weight: _Weight, ids: ir.Value) -> ir.Node:
    """Experts (n, rows, columns) from their numbers (n,)."""
    shape = (*weight.leading, weight.rows, -1)
    inputs = [
        _part(model, weight, part, weight.name + part, (*shape[:-1], weight.parts[part].shape[1]))
        for part in weight.parts
    ]
    inputs.insert(1, ids)
    attributes = {"bits": weight.bits, "block_size": weight.block_size, "gather_axis": 0, "quantize_axis": 2}
    return ir.node("GatherBlockQuantized", inputs, attributes=attributes, domain=_DOMAIN)


def _rewrite(model: ir.Model, node: ir.Node, value: ir.Value, weight: _Weight, options: ExportOptions) -> None:
    integers = options.quantize == "int8-dynamic"
    if node.op_type == "Gather" and node.inputs[0] is value and node.attributes.get_int("axis", 0) == 0:
        if integers:
            look_up_rows(model, node, *_by_rows(model, weight, (weight.rows, 1)))
        else:
            _look_up(model, node, weight)
        return
    products = [use.node for use in node.outputs[0].uses()] if node.op_type == "Transpose" else []
    for product in products:
        if product.op_type != "MatMul" or product.inputs[1] is not node.outputs[0]:
            products = []
    if not products:
        kind = weight.name.split(".")[-2]
        raise ExportError(f"{weight.name} is used by {node.op_type}, which has no quantised form; --keep {kind}")
    for product in products:
        if integers:
            multiply_integers(model, product, *_by_rows(model, weight, (weight.rows,)))
        else:
            _multiply(model, product, weight, options.accuracy_level)
    model.graph.remove(node, safe=True)


def _multiply(model: ir.Model, node: ir.Node, weight: _Weight, accuracy_level: int) -> None:
    blocks = weight.columns // weight.block_size
    codes = _part(model, weight, BLOCKS, weight.name + BLOCKS, (weight.rows, blocks, weight.blob))
    attributes = {
        "K": weight.columns,
        "N": weight.rows,
        "bits": weight.bits,
        "block_size": weight.block_size,
        "accuracy_level": accuracy_level,
    }
    replace(model, node, "MatMulNBits", [node.inputs[0], codes, *_factors(model, weight)], attributes, _DOMAIN)


def _look_up(model: ir.Model, node: ir.Node, weight: _Weight) -> None:
    name = weight.name + _ROWS
    codes = _part(model, weight, BLOCKS, name, (weight.rows, weight.columns * weight.bits // 8))
    attributes = {"bits": weight.bits, "block_size": weight.block_size, "gather_axis": 0, "quantize_axis": 1}
    inputs = [codes, node.inputs[1], *_factors(model, weight)]
    replace(model, node, "GatherBlockQuantized", inputs, attributes, _DOMAIN)


def _by_rows(model: ir.Model, weight: _Weight, scales: tuple[int, ...]) -> tuple[ir.Value, ir.Value]:
    """Codes (rows, columns) and scales, in the shape asked for, of a weight with one scale per row."""
    codes = _part(model, weight, BLOCKS, weight.name + BLOCKS, (weight.rows, weight.columns))
    suffix = SCALES if len(scales) == 1 else f"{SCALES}{_ROWS}"
    return codes, _part(model, weight, SCALES, weight.name + suffix, scales)


def _factors(model: ir.Model, weight: _Weight) -> list[ir.Value]:
    """Scales, and zero points where there are any."""
    parts = [part for part in (SCALES, ZERO_POINTS) if part in weight.parts]
    return [_part(model, weight, part, weight.name + part, weight.parts[part].shape) for part in parts]


def _part(model: ir.Model, weight: _Weight, part: str, name: str, shape: tuple[int, ...]) -> ir.Value:
    """An initializer of some bytes of the weights file; made once."""
    if name not in model.graph.initializers:
        place = weight.parts[part]
        kind = _TYPES[place.dtype]
        tensor = ir.ExternalTensor(place.location, place.offset, place.length, kind, shape=ir.Shape(shape), name=name)
        value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(shape), type=ir.TensorType(kind))
        model.graph.register_initializer(value)
    return model.graph.initializers[name]
