"""Operators of a guilty segment: the node that is wrong, between values that PyTorch computes as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvparity.exporter.contract.bundle import Bundle
from kvparity.runners.base import Array
from kvparity.runners.locate.fingerprint import Fingerprint, fingerprint, is_known
from kvparity.runners.locate.graphs import Segment, cut, evaluate, expose, load_graph, segment_of
from kvparity.runners.locate.probe_diff import Call
from kvparity.runners.locate.search import Found

__all__ = ["Inspection", "inspect_segment"]

OURS = "contract/"  # names of nodes that stand between a foreign graph and the ports of our contract


@dataclass(frozen=True, eq=False)
class Inspection:
    """A guilty segment from inside.

    Attributes:
        nodes: Nodes of the segment in execution order.
        guilty: The nodes where the segment leaves PyTorch; never empty.
        values: What every node of the segment computes from the reference's values.
        inputs: Names of the values that the segment reads.
        wrong_weights: Initializers of the segment that differ from the checkpoint: name to (expected, actual).
    """

    nodes: tuple[Any, ...]
    guilty: tuple[Any, ...]
    values: Mapping[str, Array]
    inputs: tuple[str, ...]
    wrong_weights: Mapping[str, tuple[Array, Array]]


def inspect_segment(
    bundle: Bundle,
    call: Call,
    found: Found,
    target: str,
    known: Sequence[Fingerprint],
    parameters: Mapping[str, Array],
) -> Inspection:
    """Look at every node between the probes before ``target`` and ``target``.

    Args:
        bundle: The bundle.
        call: The call.
        found: Result of the search.
        target: Name of the guilty value.
        known: Fingerprints of everything that PyTorch computed in the same call.
        parameters: Weights and buffers of the model by name.
    """
    kind = call.step.graph
    plain = load_graph(bundle, kind)
    segment = segment_of(plain, target, found.cuts.keys())
    wrong = {
        name: (np.asarray(parameters[name]), array)
        for name in segment.weights
        if name in parameters
        and _differs(np.asarray(parameters[name]), array := plain.graph.initializers[name].const_value.numpy())
    }
    names = [str(value.name) for node in segment.nodes for value in node.outputs if value.name]
    model = load_graph(bundle, kind)
    expose(model, [*found.probes.values(), *names])
    cut(model, found.cuts)
    values = evaluate(model, {**call.feeds, **found.given}, f"{kind}.onnx, one segment")
    values = {name: values[name] for name in names}
    guilty = _guilty(segment, target, values, known)
    return Inspection(segment.nodes, guilty, values, segment.inputs, wrong)


def _differs(want: Array, got: Array) -> bool:
    return want.shape != got.shape or not np.array_equal(want.astype(np.float64), got.astype(np.float64))


def _guilty(
    segment: Segment, target: str, values: Mapping[str, Array], known: Sequence[Fingerprint]
) -> tuple[Any, ...]:
    """Walk back from the wrong value through values that PyTorch never computes, to the nodes where that begins."""
    varying = _varying(segment)
    producer = {str(value.name): node for node in segment.nodes for value in node.outputs}
    if values[target].dtype.kind != "f" or target.startswith("mask."):
        return (producer[target],)
    strange: set[Any] = set()
    pending = [target]
    while pending:
        node = producer.get(pending.pop())
        if node is None or node in strange:
            continue
        strange.add(node)
        names = {str(value.name) for value in node.inputs if value is not None} & producer.keys() & varying
        pending += [
            name for name in names if values[name].dtype.kind == "f" and not is_known(fingerprint(values[name]), known)
        ]
    made = {str(value.name) for node in strange for value in node.outputs}
    first = [
        node
        for node in segment.nodes
        if node in strange and not any(value is not None and str(value.name) in made for value in node.inputs)
    ]
    own = [node for node in first if not str(node.name).startswith(OURS)]
    return tuple(own or first) or segment.nodes[-1:]


def _varying(segment: Segment) -> set[str]:
    """Values that depend on more than weights and constants."""
    varying = set(segment.inputs)
    for node in segment.nodes:
        if any(value is not None and str(value.name) in varying for value in node.inputs):
            varying |= {str(value.name) for value in node.outputs}
    return varying
