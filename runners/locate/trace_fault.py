"""Faults in a recording: the value that was computed wrongly by an engine which can't be run here.

The graph is cut at every recorded value and fed with the recording itself: what a segment makes in float64 of the
engine's own values is what the engine should have recorded next. So an early fault does not spread, and values that
were not recorded only make a segment longer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.dtypes import numpy_dtype
from kvparity.exporter.contract.errors import TraceError
from kvparity.exporter.contract.spec import DECODE, past_name, present_name
from kvparity.runners.diff.location import Location
from kvparity.runners.locate.causes import Evidence, likely_cause
from kvparity.runners.locate.experiment import make_experiment
from kvparity.runners.locate.export_fault import describe
from kvparity.runners.locate.graphs import GIVEN
from kvparity.runners.locate.isolated import Isolated, float64_values, isolated, narrow_feeds
from kvparity.runners.locate.probe_diff import Array, Call, ProbeDiff, fill_padding, settle_mask
from kvparity.runners.locate.records import paragraph
from kvparity.runners.locate.search import Found

__all__ = ["trace_fault"]

_SHOWN = 6


@dataclass(frozen=True, eq=False)
class _Recording:
    """What a trace holds of one call, matched with the graph.

    Attributes:
        values: Value name of the graph to the recorded array, in execution order.
        probes: Every probe of the graph by name, to its value's name.
        misshapen: Outputs of another shape, which nothing can be fed with.
        absent: Outputs of the call that the trace lacks.
    """

    values: Mapping[str, Array]
    probes: Mapping[str, str]
    misshapen: Mapping[str, Array]
    absent: Sequence[str]

    def name_of(self, value: str) -> str:
        """The probe that a value is."""
        return next(probe for probe, other in self.probes.items() if other == value)


Shapes = Mapping[str, tuple[int, ...]]


def trace_fault(
    bundle: Bundle,
    call: Call,
    recorded: Callable[[Shapes], Mapping[str, Array]],
    before: Mapping[str, Array],
    label: str,
) -> Location:
    """Locate what an engine got wrong in one call, by what it recorded.

    Args:
        bundle: The bundle; its graph is known to be right.
        call: The call, with the reference's caches.
        recorded: Gives outputs and values inside of the call by name, by the shapes of the graph's.
        before: Outputs that were recorded of the call before; its caches are taken for this call's past.
        label: For the answer.

    Raises:
        TraceError: A recorded value is none of the graph's, or has another shape.
    """
    kind, dtype = call.step.graph, numpy_dtype(bundle.options.dtype)
    feeds = narrow_feeds(bundle, {**call.feeds, **_pasts(bundle, call, before)})
    exact, probes = float64_values(bundle, call, feeds, every=False)
    outputs = {port.name: port.name for port in bundle.graph(kind).spec.outputs}
    shapes = {name: exact[value].shape for name, value in {**outputs, **probes}.items()}
    found = _match(bundle, call, recorded(shapes), exact, probes)
    known = {value: fill_padding(call, found.name_of(value), a, exact[value]) for value, a in found.values.items()}
    base = Location(
        "engine",
        label,
        call.case.name,
        call.step.index,
        kind,
        reference="the same graph in float64, fed with the recorded values",
        checked=len(found.values) + len(found.misshapen),
    )
    given = {
        value + GIVEN: (settle_mask(array) if value.startswith("mask.") else array).astype(dtype)
        for value, array in known.items()
    }
    fed = {**feeds, **given}
    made = isolated(bundle, kind, found.values, fed, probes.values())
    every = {**found.values, **found.misshapen}
    in_order = (value for value in dict.fromkeys(probes.values()) if value in every)
    judged = [made.judge(call, found.name_of(value), value, every[value]) for value in in_order]
    wrong = [diff for diff in judged if diff is not None]
    location = _guilty(bundle, call, base, found, made, wrong, fed) if wrong else _innocent(base, found)
    return replace(location, sentence=paragraph(location))


def _pasts(bundle: Bundle, call: Call, before: Mapping[str, Array]) -> dict[str, Array]:
    """The engine's own caches before this call, where it recorded all of them in the right shapes."""
    names = [(slot.slot, part) for slot, part in bundle.model.cache_names()] if call.step.graph == DECODE else []
    pasts = {past_name(*name): before[present_name(*name)] for name in names if present_name(*name) in before}
    fitting = all(array.shape == call.feeds[name].shape for name, array in pasts.items())
    return pasts if fitting and len(pasts) == len(names) else {}


def _match(
    bundle: Bundle,
    call: Call,
    recorded: Mapping[str, Array],
    exact: Mapping[str, Array],
    probes: Mapping[str, str],
) -> _Recording:
    """Find the graph's value of every recorded one."""
    outputs = [port.name for port in bundle.graph(call.step.graph).spec.outputs]
    place = f"{call.case.name}/step_{call.step.index}"
    values: dict[str, Array] = {}
    misshapen: dict[str, Array] = {}
    for name, array in recorded.items():
        if name in call.feeds:
            continue
        value = probes.get(name, name if name in outputs else "")
        if not value:
            near = get_close_matches(name, [*probes, *outputs], 3)
            hint = f"; close to it are {', '.join(near)}" if near else ""
            raise TraceError(
                f"{place}: {name!r} is no value of {call.step.graph}.onnx{hint}; the command probes lists all"
            )
        if array.shape == exact[value].shape:
            values[value] = array
        elif name in outputs:
            misshapen[value] = array
        else:
            raise TraceError(f"{place}: {name} has shape {array.shape}, expected {exact[value].shape}")
    order = {value: index for index, value in enumerate(dict.fromkeys(probes.values()))}
    ordered = dict(sorted(values.items(), key=lambda item: order[item[0]]))
    return _Recording(ordered, probes, misshapen, [name for name in outputs if name not in recorded])


def _guilty(
    bundle: Bundle,
    call: Call,
    base: Location,
    found: _Recording,
    made: Isolated,
    wrong: Sequence[ProbeDiff],
    fed: Mapping[str, Array],
) -> Location:
    first = wrong[0]
    reference = {
        probe: found.values.get(value, made.expected[value])
        for probe, value in found.probes.items()
        if value != first.value
    }
    experiment = make_experiment(bundle, call.step.graph, first.value, found.values.keys(), fed)
    cause = likely_cause(Evidence(bundle.model, call, first, reference, experiment=experiment))
    searched = Found(found.probes, (), tuple(wrong), {}, {})
    between = [] if cause is not None else _unrecorded(found, first, experiment.inside)
    shown = ", ".join(between[:_SHOWN]) + (f" and {len(between) - _SHOWN} more" if len(between) > _SHOWN else "")
    note = f"Between it and the recorded values before it lie {shown}: record those to narrow it." if between else ""
    return replace(describe(base, bundle.model, first, searched, None, cause), note=note, checked=base.checked)


def _unrecorded(found: _Recording, first: ProbeDiff, inside: frozenset[str]) -> list[str]:
    """Probes inside the guilty segment that the trace lacks: those of its own layer first, in execution order."""
    layer = ".".join(first.probe.split(".")[:2]) + "."
    names = [probe for probe, value in found.probes.items() if value in inside and value != first.value]
    return sorted(names, key=lambda name: not name.startswith(layer))


def _innocent(base: Location, found: _Recording) -> Location:
    count = len(found.values)
    note = (
        f"The trace holds {count} value{'' if count == 1 else 's'} of this call, and each is what the graph makes of "
        "those before it, within float32 rounding"
    )
    if found.absent:
        return replace(base, fault="unknown", note=f"{note}; it lacks {', '.join(found.absent[:_SHOWN])}.")
    note += ": the difference is made of rounding that adds up, or of caches from earlier calls."
    return replace(base, fault="none", note=note)
