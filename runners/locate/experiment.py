"""Evaluates one segment of a right graph again, in float64, with other arrays in the place of some of its values."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.spec import GraphKind
from kvparity.runners.engines.exact import open_model, widen
from kvparity.runners.locate.evidence import Experiment
from kvparity.runners.locate.graphs import GIVEN, Segment, load_graph, segment_of
from kvparity.runners.locate.isolated import cut_graph
from kvparity.runners.locate.probe_diff import Array

__all__ = ["make_experiment"]


def make_experiment(
    bundle: Bundle, kind: GraphKind, target: str, cuts: Collection[str], feeds: Mapping[str, Array]
) -> Experiment:
    """Make the segment that ends in a value ready to be tried.

    Args:
        bundle: The bundle.
        kind: Which graph.
        target: The value.
        cuts: Where segments begin.
        feeds: Inputs of the graph, and ``<cut>/given`` for every cut.
    """
    plain = load_graph(bundle, kind, wide=False)
    segment = segment_of(plain, target, cuts)
    fed = {name: feeds.get(name + GIVEN, feeds.get(name)) for name in segment.inputs}
    inputs = {
        name: np.asarray(array, np.float64)
        for name, array in fed.items()
        if array is not None and array.dtype.kind == "f" and not name.startswith("mask.")
    }
    weights = {name: plain.graph.initializers[name].const_value for name in segment.weights}
    vectors = {name: tensor.numpy() for name, tensor in weights.items() if len(tensor.shape) == 1}
    made = frozenset(str(value.name) for node in segment.nodes for value in node.outputs)
    gate, activation = _activation(segment)
    trial = _Trial(bundle, kind, target, (*cuts, *filter(None, [activation])), feeds)
    return Experiment(inputs, vectors, activation, gate, made, frozenset(cuts), trial.run)


def _activation(segment: Segment) -> tuple[str, str]:
    """What enters and what leaves the nodes of the segment's activation function; empty where it has none."""
    inside = [node for node in segment.nodes if "act_fn" in str(node.name)]
    made = {str(value.name) for node in inside for value in node.outputs}
    entering = [
        str(value.name)
        for node in inside
        for value in node.inputs
        if value is not None and str(value.name) not in made and not value.is_initializer()
    ]
    leaving = [
        str(value.name)
        for node in inside
        for value in node.outputs
        if any(use.node not in inside for use in value.uses())
    ]
    return (entering[0], leaving[-1]) if len(leaving) == 1 and entering else ("", "")


class _Trial:
    """A segment as a model of its own; made when it is first run."""

    def __init__(
        self, bundle: Bundle, kind: GraphKind, target: str, cuts: Collection[str], feeds: Mapping[str, Array]
    ) -> None:
        self._make = (bundle, kind, target, cuts)
        self._feeds = feeds
        self._models: dict[frozenset[str], Any] = {}

    def run(self, changed: Mapping[str, Array]) -> Array:
        """The segment's value, float64."""
        bundle, kind, target, cuts = self._make
        known = {name for name in cuts if name + GIVEN in self._feeds}
        inner = frozenset(changed.keys() & set(cuts) - known)
        if inner not in self._models:
            self._models[inner] = _segment_model(bundle, kind, target, known | inner)
        names, run = self._models[inner]
        given = {(name + GIVEN if name in cuts else name): array for name, array in changed.items()}
        feeds = {name: array for name, array in {**self._feeds, **given}.items() if name in names}
        floats = {k: v.astype(np.float64) if v.dtype.kind not in "iub" else v for k, v in feeds.items()}
        return np.asarray(run(floats)[0])


def _segment_model(bundle: Bundle, kind: GraphKind, target: str, cuts: Collection[str]) -> Any:
    """Names of the inputs, and a function from inputs to outputs."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    model = cut_graph(bundle, kind, cuts)
    wanted = next(value for value in model.graph.outputs if value.name == target)
    model.graph.outputs.clear()
    model.graph.outputs.append(wanted)
    RemoveUnusedNodesPass()(model)
    unused = [value for value in model.graph.inputs if not value.uses()]
    for value in unused:
        model.graph.inputs.remove(value)
    widen(model)
    _, run = open_model(model, "ort", f"{kind}.onnx, one segment")
    return {str(value.name) for value in model.graph.inputs}, run
