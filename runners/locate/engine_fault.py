"""Engine faults: the operator that an engine computes wrongly in a graph that is right.

Every probe is cut and fed with float64 values rounded to the graph's dtype, so that an engine's error in one segment
cannot reach the next. What float32 arithmetic itself costs is measured on the same cut graph with onnx's own evaluator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.dtypes import numpy_dtype
from kvparity.runners.base import RunnerSpec, Session
from kvparity.runners.diff.location import Location
from kvparity.runners.locate.causes import Cause
from kvparity.runners.locate.export_fault import describe
from kvparity.runners.locate.graphs import GIVEN, load_graph, segment_of
from kvparity.runners.locate.isolated import cut_graph, float64_values, isolated, narrow_feeds
from kvparity.runners.locate.operators import Inspection
from kvparity.runners.locate.probe_diff import Array, Call, ProbeDiff
from kvparity.runners.locate.probed_bundle import probed_bundle
from kvparity.runners.locate.records import paragraph
from kvparity.runners.locate.search import Found

__all__ = ["engine_fault"]

Opener = Callable[[Bundle, RunnerSpec], Session]


@dataclass(frozen=True, eq=False)
class _Cut:
    """One cut graph on engine, float64 and float32."""

    wrong: tuple[ProbeDiff, ...]
    expected: Mapping[str, Array]
    count: int


def engine_fault(bundle: Bundle, call: Call, spec: RunnerSpec, opener: Opener, label: str) -> Location | None:
    """Locate what an engine computes wrongly in one call.

    Args:
        bundle: The bundle.
        call: The call.
        spec: The engine.
        opener: Opens it on a bundle.
        label: For the answer.

    Returns:
        The location, or None where every segment is within the budget of float32 arithmetic.
    """
    kind = call.step.graph
    feeds = narrow_feeds(bundle, call.feeds)
    values, probes = float64_values(bundle, call, feeds, every=True)
    names = {probe: value for probe, value in probes.items() if values[value].dtype.kind == "f"}
    coarse = _compare(bundle, call, feeds, values, names, spec, opener)
    if not coarse.wrong:
        return None
    guilty = coarse.wrong[0]
    plain = load_graph(bundle, kind)
    segment = segment_of(plain, guilty.value, set(names.values()))
    inner = {str(v.name): str(v.name) for node in segment.nodes for v in node.outputs if v.name}
    inner = {name: name for name in inner if values[name].dtype.kind == "f"}
    fine = _compare(bundle, call, feeds, values, {**names, **inner}, spec, opener)
    wrong = {diff.value for diff in fine.wrong}
    nodes = tuple(node for node in segment.nodes if any(value.name in wrong for value in node.outputs))
    shown = next((diff for diff in fine.wrong if nodes and diff.value == nodes[0].outputs[0].name), guilty)
    shown = replace(shown, probe=guilty.probe)
    found = Found(names, (), coarse.wrong, {}, {})
    inspection = Inspection(segment.nodes, nodes or segment.nodes[-1:], {}, segment.inputs, {})
    base = Location(
        "engine", label, call.case.name, call.step.index, kind, reference="the same graph in float64, same inputs"
    )
    located = describe(base, bundle.model, shown, found, inspection, _cause(coarse, fine, inspection))
    located = replace(located, also=tuple(diff.probe for diff in coarse.wrong[1:]))
    return replace(located, sentence=paragraph(located))


def _compare(
    bundle: Bundle,
    call: Call,
    feeds: Mapping[str, Array],
    values: Mapping[str, Array],
    names: Mapping[str, str],
    spec: RunnerSpec,
    opener: Opener,
) -> _Cut:
    """Cut a graph at the named values and run it on the engine, in float64, and in float32."""
    kind, dtype = call.step.graph, numpy_dtype(bundle.options.dtype)
    given = {value + GIVEN: values[value].astype(dtype) for value in names.values()}
    narrow = cut_graph(bundle, kind, names.values())
    _shape_inputs(narrow, given)
    with probed_bundle(bundle, kind, narrow) as probed:
        session = opener(probed, spec)
        try:
            actual = session.run(kind, {**feeds, **given})
        finally:
            session.close()
    made = isolated(bundle, kind, names.values(), {**feeds, **given})
    wrong = [made.judge(call, probe, value, actual[value]) for probe, value in names.items()]
    return _Cut(tuple(diff for diff in wrong if diff is not None), made.expected, len(names))


def _shape_inputs(model: Any, given: Mapping[str, Array]) -> None:
    """Give the inputs that stand in for values their shapes: OpenVINO's passes fail on a value of unknown rank."""
    import onnx_ir as ir

    for value in model.graph.inputs:
        if value.name in given:
            value.shape = ir.Shape(given[value.name].shape)


def _cause(coarse: _Cut, fine: _Cut, inspection: Inspection) -> Cause | None:
    if len(coarse.wrong) > coarse.count // 3:
        return Cause(
            "reduced-precision",
            f"{len(coarse.wrong)} of {coarse.count} values are off by more than float32 rounding: the engine computes "
            "in reduced precision (a bfloat16 or float16 hint, fast math, or a quantised kernel)",
        )
    node = inspection.guilty[0]
    shape = _distribution(fine.wrong)
    return Cause("kernel", f"the engine's {node.op_type} kernel is wrong for this call{shape}")


def _distribution(wrong: Sequence[ProbeDiff]) -> str:
    if not wrong or wrong[0].position is None:
        return ""
    want, got = np.asarray(wrong[0].want, np.float64), np.asarray(wrong[0].got, np.float64)
    distance = np.abs(want - got) > wrong[0].limit
    share = float(distance.mean())
    return f": {share:.0%} of its result is over the limit" if share < 1 else ": all of its result is over the limit"
