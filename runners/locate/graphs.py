"""A graph with its probes as outputs (cascade), or with every probe cut and fed from outside (isolated)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.probes import kept_probes
from kvparity.exporter.contract.spec import GraphKind
from kvparity.runners.base import Array
from kvparity.runners.engines.exact import bundle_graph, open_model, widen

__all__ = [
    "GIVEN",
    "Segment",
    "cut",
    "evaluate",
    "expose",
    "inline_weights",
    "load_graph",
    "open_graph",
    "probes_of",
    "segment_of",
]

GIVEN = "/given"  # suffix of the input that stands in for a cut value


def open_graph(bundle: Bundle, kind: GraphKind) -> Any:
    """A graph of a bundle as an onnx_ir model."""
    return bundle_graph(bundle, kind)


def load_graph(bundle: Bundle, kind: GraphKind, *, wide: bool = True) -> Any:
    """A graph of a bundle as an onnx_ir model, in float64 where ``wide``."""
    model = open_graph(bundle, kind)
    if wide:
        widen(model)
    return model


def inline_weights(model: Any) -> None:
    """Read the weights of a model into it, in place, so that it can be handed over without its files."""
    import onnx_ir as ir

    for name, value in model.graph.initializers.items():
        value.const_value = ir.tensor(value.const_value.numpy(), name=name)


def probes_of(model: Any) -> dict[str, str]:
    """Probe name to value name in execution order; outputs that no probe names are their own probes."""
    kept = kept_probes(model)
    order = {str(value.name): index for index, value in enumerate(_values(model))}
    found = {probe: value for probe, value in kept.items() if value in order}
    named = set(found.values())
    found |= {str(value.name): str(value.name) for value in model.graph.outputs if value.name not in named}
    return dict(sorted(found.items(), key=lambda item: order.get(item[1], len(order))))


def expose(model: Any, names: Iterable[str]) -> None:
    """Make values outputs as well, in place; those that are outputs already stay as they are."""
    values = {str(value.name): value for value in _values(model)}
    known = {str(value.name) for value in model.graph.outputs}
    for name in names:
        if name not in known:
            model.graph.outputs.append(values[name])
            known.add(name)


def cut(model: Any, dtypes: Mapping[str, np.dtype[Any]]) -> None:
    """Let every reader of the named values read a new input ``<name>/given`` instead, in place.

    The values themselves become outputs, so that each is computed from given values alone and an error made in one
    segment cannot reach the next.

    Args:
        model: The graph.
        dtypes: Value name to its dtype.
    """
    import onnx_ir as ir

    expose(model, dtypes)
    values = {str(value.name): value for value in _values(model)}
    for name, dtype in dtypes.items():
        stand_in = ir.Value(name=name + GIVEN, type=ir.TensorType(ir.DataType.from_numpy(dtype)))
        for use in tuple(values[name].uses()):
            use.node.replace_input_with(use.idx, stand_in)
        model.graph.inputs.append(stand_in)


@dataclass(frozen=True)
class Segment:
    """The nodes between cut values and one value that they make.

    Attributes:
        nodes: In execution order.
        inputs: Cut values and graph inputs that the nodes read.
        weights: Initializers that they read.
    """

    nodes: tuple[Any, ...]
    inputs: tuple[str, ...]
    weights: tuple[str, ...]


def segment_of(model: Any, target: str, cuts: Collection[str]) -> Segment:
    """Walk back from a value to the cut values, graph inputs and initializers that it is made of."""
    values = {str(value.name): value for value in _values(model)}
    nodes: set[Any] = set()
    inputs: list[str] = []
    weights: list[str] = []
    pending = [values[target]]
    while pending:
        value = pending.pop()
        name, node = str(value.name), value.producer()
        if node is None:
            found = weights if value.is_initializer() else inputs
            found.append(name)
        elif name in cuts and name != target:
            inputs.append(name)
        elif node not in nodes:
            nodes.add(node)
            pending += [item for item in node.inputs if item is not None]
    ordered = tuple(node for node in model.graph if node in nodes)
    return Segment(ordered, tuple(dict.fromkeys(inputs)), tuple(dict.fromkeys(weights)))


def evaluate(model: Any, inputs: Mapping[str, Array], name: str, *, wide: bool = True) -> dict[str, Array]:
    """Run a model once.

    Args:
        model: An onnx_ir model.
        inputs: By name; floating-point ones are cast to what the model takes.
        name: For messages.
        wide: Whether the model was widened to float64.
    """
    names, run = open_model(model, "ort", name)
    feeds = {key: _cast(array, wide=wide) for key, array in inputs.items()}
    return dict(zip(names, run(feeds), strict=True))


def _cast(array: Array, *, wide: bool) -> Array:
    return array.astype(np.float64) if wide and array.dtype.kind not in "iub" else np.ascontiguousarray(array)


def _values(model: Any) -> list[Any]:
    return [value for node in model.graph for value in node.outputs if value.name]
