"""Conditions on graphs that passes require and ensure: a model in, one line per violation out.

:func:`graph_pass` runs them around a pass, in every export: each looks at every node once, which is cheap beside
tracing. A violation is a mistake in a pass, not in a checkpoint, and stops the export before a wrong graph is written.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar, cast

import numpy as np
import onnx_ir as ir

from kvparity.exporter.contract.spec import FLOAT64_CONSTANTS

__all__ = ["Condition", "digits_round", "graph_pass", "lacks", "shaped", "sound", "unique_names", "without_float64"]

Condition = Callable[[ir.Model], Iterable[str]]
_Function = TypeVar("_Function", bound=Callable[..., None])


def graph_pass(
    *, requires: Iterable[Condition] = (), ensures: Iterable[Condition] = ()
) -> Callable[[_Function], _Function]:
    """Make a function on a model a pass: its conditions are checked before and after it, and that the graph is sound.

    Raises:
        onnx_ir.passes.PreconditionError: What the pass requires does not hold.
        onnx_ir.passes.PostconditionError: What it ensures does not hold, or the graph is no longer sound.
    """
    before, after = tuple(requires), (sound, *ensures)

    def decorate(function: _Function) -> _Function:
        @functools.wraps(function)
        def checked(model: ir.Model, *args: Any, **kwargs: Any) -> None:
            for found in (line for condition in before for line in condition(model)):
                raise ir.passes.PreconditionError(f"before {function.__name__}: {found}")
            function(model, *args, **kwargs)
            for found in (line for condition in after for line in condition(model)):
                raise ir.passes.PostconditionError(f"after {function.__name__}: {found}")

        return cast(_Function, checked)

    return decorate


def sound(model: ir.Model) -> Iterator[str]:
    """Every value that a node reads or the graph returns was made before, and every operator's domain is imported."""
    made: set[ir.Value] = {*model.graph.inputs, *model.graph.initializers.values()}
    for node in model.graph:
        for value in node.inputs:
            if value is not None and value not in made:
                yield f"{node.op_type} reads {value.name}, which nothing before it makes"
        if node.domain not in model.opset_imports:
            yield f"{node.op_type} is of {node.domain}, which is not imported"
        made.update(node.outputs)
    yield from (f"nothing makes output {value.name}" for value in model.graph.outputs if value not in made)


def lacks(*op_types: str) -> Condition:
    """No node is of these operators."""
    return lambda model: (f"{node.op_type} {node.name}" for node in model.graph if node.op_type in op_types)


def shaped(model: ir.Model) -> Iterator[str]:
    """Values have the shapes that tracing found; :mod:`exporter.passes.node_names` drops them."""
    nodes = list(model.graph)
    if nodes and not any(value.shape is not None for node in nodes for value in node.outputs):
        yield "no value has a shape"


def without_float64(model: ir.Model) -> Iterator[str]:
    """No value is float64, and nothing is cast to it."""
    values = [*model.graph.inputs, *model.graph.initializers.values(), *(v for n in model.graph for v in n.outputs)]
    yield from (f"{value.name} is float64" for value in values if value.dtype == ir.DataType.DOUBLE)
    for node in model.graph:
        if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.DOUBLE:
            yield f"{node.name} casts to float64"


def digits_round(model: ir.Model) -> Iterator[str]:
    """The float64 digits kept in the metadata round to the constants of the graph."""
    for name, digits in json.loads(model.metadata_props.get(FLOAT64_CONSTANTS, "{}")).items():
        value = model.graph.initializers.get(name)
        tensor = None if value is None else value.const_value
        if tensor is None:
            continue  # folded into another form since, such as a norm's epsilon
        kept = np.asarray(tensor.numpy()).ravel()
        most = float(np.finfo(kept.dtype).max) if kept.dtype.kind == "f" else np.inf  # finite digits stay finite
        if not np.array_equal(np.clip([float.fromhex(x) for x in digits], -most, most).astype(kept.dtype), kept):
            yield f"{name} is not what its digits round to"


def unique_names(model: ir.Model) -> Iterator[str]:
    """No two nodes and no two values have one name."""
    nodes = [str(node.name) for node in model.graph]
    values = [str(value.name) for value in (*model.graph.inputs, *model.graph.initializers.values())]
    values += [str(value.name) for node in model.graph for value in node.outputs if value.name]
    for kind, names in (("node", nodes), ("value", values)):
        if len(set(names)) < len(names):
            yield f"two {kind}s are called {max(names, key=names.count)}"
