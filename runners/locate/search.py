"""Search for the wrong probe: the first one when the graph runs as it is, and those wrong from right inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.errors import TraceError
from kvparity.exporter.contract.spec import DECODE, GraphKind
from kvparity.exporter.contract.vectors import Vectors, expected_pasts
from kvparity.runners.base import Array
from kvparity.runners.locate.graphs import GIVEN, cut, evaluate, expose, load_graph, probes_of
from kvparity.runners.locate.probe_diff import RELATIVE, Call, ProbeDiff, diff_probe, settle_mask

__all__ = ["Found", "make_call", "search"]


@dataclass(frozen=True, eq=False)
class Found:
    """What the float64 evaluation of a graph says about one call.

    Attributes:
        probes: Probe name to value name, in execution order.
        cascade: Probes that differ when the graph runs as it is, in execution order.
        isolated: Probes that differ although they are computed from the reference's own values.
        given: What the isolated graph was fed with beyond the call's inputs.
        cuts: Values cut, with their dtype.
    """

    probes: Mapping[str, str]
    cascade: tuple[ProbeDiff, ...]
    isolated: tuple[ProbeDiff, ...]
    given: Mapping[str, Array]
    cuts: Mapping[str, np.dtype[Any]]


def make_call(bundle: Bundle, vectors: Vectors, index: int) -> Call:
    """A call of a case, fed with the caches that the float64 reference holds at that point.

    Raises:
        TraceError: The bundle's layout is not the dynamic one, or the case has no such call.
    """
    if bundle.options.layout != "dynamic":
        raise TraceError(
            f"{bundle.root}: only graphs of the dynamic layout can be opened; export one with the same model"
        )
    case = vectors.case
    step = next((step for step in case.steps() if step.index == index), None)
    if step is None:
        raise TraceError(f"case {case.name}: has no step {index}")
    exact = vectors.float64() if vectors.has_float64 else vectors.arrays
    feeds: dict[str, Array] = dict(case.inputs(step))
    if step.graph == DECODE:
        feeds |= expected_pasts(exact, case, step, bundle.model.slots, bundle.options)
    return Call(case.seen_by(step), step, feeds)


def search(bundle: Bundle, call: Call, reference: Mapping[str, Array], relative: float = RELATIVE) -> Found:
    """Run one call in float64, as it is and cut at every probe.

    Args:
        bundle: The bundle.
        call: The call.
        reference: What every probe and output should be; see :class:`runners.locate.pytorch.WatchedModel`.
        relative: Largest difference that passes, as a share of a value's largest number.
    """
    kind: GraphKind = call.step.graph
    model = load_graph(bundle, kind)
    probes = {name: value for name, value in probes_of(model).items() if name in reference}
    expose(model, probes.values())
    values = evaluate(model, call.feeds, f"{kind}.onnx")
    cascade = _differing(call, probes, reference, values, relative)
    if not cascade:
        return Found(probes, (), (), {}, {})
    cuts = {
        value: values[value].dtype
        for name, value in probes.items()
        if values[value].dtype.kind == "f" and reference[name].shape == values[value].shape
    }
    given = {
        value + GIVEN: settle_mask(reference[name]) if name.startswith("mask.") else reference[name]
        for name, value in probes.items()
        if value in cuts
    }
    model = load_graph(bundle, kind)
    expose(model, probes.values())
    cut(model, cuts)
    values = evaluate(model, {**call.feeds, **given}, f"{kind}.onnx, isolated")
    return Found(probes, cascade, _differing(call, probes, reference, values, relative), given, cuts)


def _differing(
    call: Call,
    probes: Mapping[str, str],
    reference: Mapping[str, Array],
    values: Mapping[str, Array],
    relative: float,
) -> tuple[ProbeDiff, ...]:
    found = (diff_probe(call, name, value, reference[name], values[value], relative) for name, value in probes.items())
    return tuple(diff for diff in found if diff is not None)
