"""Names for the values of a graph that has none of ours: each is paired with a module output of PyTorch by its numbers.

A value that holds what a module returns, in any order of axes, is that module's. From where a graph is wrong nothing
holds the right numbers any more: there, the nearest value of the same size stands for a module's output, so that the
search for the first wrong one (:mod:`runners.locate.search`) has a name for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.probes import keep_probes
from kvparity.runners.base import Array
from kvparity.runners.locate.fingerprint import Fingerprint, fingerprint, is_known
from kvparity.runners.locate.graphs import evaluate, expose, load_graph
from kvparity.runners.locate.operators import OURS
from kvparity.runners.locate.probe_diff import Call

__all__ = ["Change", "Pair", "name_probes", "pair_values"]

_SAME = 1e-8  # of the largest number; float64 values of a right graph are within 1e-12
_NEAR = 0.9  # of a tensor's own size: beyond it, two tensors have nothing in common
_SAMPLE = 4096


@dataclass(frozen=True)
class Change:
    """One change of layout: ``Transpose`` or ``Reshape`` to ``there``, and to ``back`` again."""

    operator: str
    there: tuple[int, ...]
    back: tuple[int, ...]


Way = tuple[Change, ...]


@dataclass(frozen=True)
class Pair:
    """One value of a graph that stands for a module's output.

    Attributes:
        probe: The module's path, or another name that PyTorch's side gives.
        value: The value's name.
        way: What brings the value into PyTorch's order of axes, in the sizes of the call.
        same: Whether it holds the same numbers; the nearest there is otherwise.
    """

    probe: str
    value: str
    way: Way
    same: bool


def pair_values(bundle: Bundle, call: Call, reference: Mapping[str, Array]) -> list[Pair]:
    """Pair the values of a graph with PyTorch's.

    Args:
        bundle: The bundle.
        call: A call; one that crosses what is suspected.
        reference: PyTorch's values of that call in float64, in execution order.
    """
    model = load_graph(bundle, call.step.graph)
    names = [str(value.name) for node in model.graph for value in node.outputs if value.name]
    ports = {str(value.name) for value in model.graph.outputs}
    expose(model, names)
    found = evaluate(model, call.feeds, f"{call.step.graph}.onnx")
    values = {
        name: array
        for name in names
        if name not in ports and (array := np.asarray(found[name])).dtype.kind == "f" and array.size > 1
    }
    return list(_pairs(values, {name: array for name, array in reference.items() if name not in ports}))


def _pairs(values: Mapping[str, Array], reference: Mapping[str, Array]) -> Iterator[Pair]:
    by_size: dict[int, list[str]] = {}
    for name, array in values.items():
        by_size.setdefault(array.size, []).append(name)
    order = {name: index for index, name in enumerate(values)}
    taken: set[str] = set()
    seen: list[Fingerprint] = []
    last = -1
    for probe, want in reference.items():
        if want.size < 2 or not np.isfinite(want).all() or is_known(found := fingerprint(want), seen):
            continue  # a module that hands on what another made
        seen.append(found)
        near = []
        for name in by_size.get(want.size, ()):
            if name not in taken:
                near += [(distance, order[name], name, way) for distance, way in _distances(values[name], want)]
        if not near:
            continue
        distance, place, name, way = min(near, key=_first)
        same = distance <= _SAME
        if not same:
            later = [item for item in near if item[1] > last and item[0] <= _NEAR]
            if not later:
                continue
            distance, place, name, way = min(later, key=_first)
        last = max(last, place) if same else last
        taken.add(name)
        yield Pair(probe, name, way, same)


def _first(item: tuple[float, int, str, Way]) -> tuple[float, int]:
    return item[0], item[1]


def _distances(value: Array, want: Array) -> Iterator[tuple[float, Way]]:
    """How far a value is from a tensor of the same size, in every order of axes that exporters use."""
    for way, view in _views(value, want):
        a, b = _sample(view), _sample(want)
        scale = float(np.abs(b).max(initial=0)) or 1.0
        if float(np.abs(a - b).max(initial=0)) <= _SAME * scale:
            whole = float(np.abs(np.asarray(view, np.float64) - np.asarray(want, np.float64)).max())
            yield (0.0 if whole <= _SAME * scale else 1e-6), way
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            distance = float(np.sqrt(float((a - b) @ (a - b)) / float(b @ b))) if b.any() else float("inf")
        yield (distance if np.isfinite(distance) else float("inf")), way


def _views(value: Array, want: Array) -> Iterator[tuple[Way, Array]]:
    """A value in the shape of another of the same size: as it is, two axes exchanged, axes joined or parted."""
    if value.shape == want.shape:
        yield (), value
    if value.ndim == 4 and (turned := value.transpose(0, 2, 1, 3)).shape == want.shape:
        yield (Change("Transpose", (0, 2, 1, 3), (0, 2, 1, 3)),), turned
    if want.ndim == 4 and value.ndim == 3 and value.shape[:2] == (want.shape[0], want.shape[2]):
        parted = (want.shape[0], want.shape[2], want.shape[1], want.shape[3])  # (batch, sequence, heads x head_dim)
        way = (Change("Reshape", parted, value.shape), Change("Transpose", (0, 2, 1, 3), (0, 2, 1, 3)))
        yield way, value.reshape(parted).transpose(0, 2, 1, 3)
    elif value.shape != want.shape:
        yield (Change("Reshape", want.shape, value.shape),), value.reshape(want.shape)
        if value.ndim == 4:
            turned = value.transpose(0, 2, 1, 3)
            way = (Change("Transpose", (0, 2, 1, 3), (0, 2, 1, 3)), Change("Reshape", want.shape, turned.shape))
            yield way, turned.reshape(want.shape)


def _sample(array: Array) -> Any:
    flat = np.asarray(array).reshape(-1)
    return np.asarray(flat[:: max(1, flat.size // _SAMPLE)], np.float64)


def name_probes(model: Any, pairs: list[Pair]) -> None:
    """Put a value with the probe's name, in PyTorch's order of axes, in the place of each paired value, in place.

    What read the value reads it turned there and back again, so that a probe can be cut and fed like any other.

    Args:
        model: The graph, with our contract's ports.
        pairs: What :func:`pair_values` found in it.
    """
    values = {str(value.name): value for node in model.graph for value in node.outputs if value.name}
    for pair in pairs:
        if pair.value in values:
            _insert(model, values[pair.value], pair)
    keep_probes(model, {pair.probe: pair.probe for pair in pairs})


def _insert(model: Any, value: Any, pair: Pair) -> None:
    import onnx_ir as ir

    made: list[Any] = []

    def node(operator: str, source: Any, numbers: tuple[int, ...] = ()) -> Any:
        inputs, attributes = [source], {"perm": list(numbers)} if operator == "Transpose" else None
        if operator == "Reshape":
            tensor = ir.tensor(np.asarray(numbers, np.int64))
            inputs.append(ir.Value(name=f"{pair.probe}/shape_{len(made)}", const_value=tensor))
            model.graph.register_initializer(inputs[1])
        made.append(ir.node(operator, inputs, attributes, name=f"{OURS}{pair.probe}/{operator}_{len(made)}"))
        made[-1].outputs[0].name = f"{pair.probe}/{len(made)}"
        return made[-1].outputs[0]

    uses = tuple(value.uses())
    probe = value
    for change in pair.way:
        probe = node(change.operator, probe, change.there)
    probe = node("Identity", probe)
    probe.name = pair.probe
    back = probe
    for change in reversed(pair.way):
        back = node(change.operator, back, change.back)
    for use in uses:
        use.node.replace_input_with(use.idx, back)
    model.graph.insert_after(value.producer(), made)
