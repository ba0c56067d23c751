"""Export faults: one call of the graph in float64 against PyTorch in float64, probe by probe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.spec import GraphKind, ModelSpec
from kvparity.runners.base import Array
from kvparity.runners.diff.location import Location
from kvparity.runners.diff.records import number
from kvparity.runners.locate.causes import Cause, Evidence, likely_cause
from kvparity.runners.locate.evidence import layer_of
from kvparity.runners.locate.fingerprint import Fingerprint
from kvparity.runners.locate.operators import Inspection, inspect_segment
from kvparity.runners.locate.probe_diff import RELATIVE, Call, ProbeDiff
from kvparity.runners.locate.records import paragraph
from kvparity.runners.locate.search import Found, search

__all__ = ["ExportFault", "Watcher", "describe", "export_fault"]


class Watcher(Protocol):
    """A reference whose inside can be seen; :class:`runners.locate.pytorch.WatchedModel`."""

    def run(self, graph: GraphKind, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Probe values and outputs of one call."""
        ...

    def fingerprints(self, graph: GraphKind, inputs: Mapping[str, Array]) -> list[Fingerprint]:
        """Fingerprints of everything computed in one call."""
        ...

    def parameters(self) -> Mapping[str, Array]:
        """Weights and buffers by name."""
        ...


@dataclass(frozen=True)
class ExportFault:
    """A fault of the graph.

    Attributes:
        location: Where it is.
        at_outputs: How much each wrong output of the graph is off because of it, by output name.
    """

    location: Location
    at_outputs: Mapping[str, float]


def export_fault(
    bundle: Bundle, call: Call, watcher: Watcher, runner: str = "exact", relative: float = RELATIVE
) -> ExportFault | None:
    """Locate what is wrong with the graph in one call.

    Args:
        bundle: The bundle.
        call: The call, with the reference's caches.
        watcher: The reference.
        runner: Label for the answer.
        relative: Largest difference of a value that passes, as a share of its largest number.

    Returns:
        The fault, or None where the graph agrees with the reference at every probe.
    """
    reference = watcher.run(call.step.graph, call.feeds)
    found = search(bundle, call, reference, relative)
    if not found.cascade:
        return None
    guilty = (found.isolated or found.cascade)[0]
    inspection = inspect_segment(
        bundle,
        call,
        found,
        guilty.value,
        watcher.fingerprints(call.step.graph, call.feeds),
        watcher.parameters(),
    )
    cause = likely_cause(Evidence(bundle.model, call, guilty, reference, inspection))
    base = Location("export", runner, call.case.name, call.step.index, call.step.graph, reference="PyTorch in float64")
    located = describe(base, bundle.model, guilty, found, inspection, cause)
    outputs = {port.name for port in bundle.graph(call.step.graph).spec.outputs}
    at_outputs = {diff.value: diff.difference for diff in found.cascade if diff.value in outputs}
    return ExportFault(replace(located, sentence=paragraph(located)), at_outputs)


def describe(
    base: Location,
    model: ModelSpec,
    guilty: ProbeDiff,
    found: Found,
    inspection: Inspection | None,
    cause: Cause | None,
) -> Location:
    """Fill a location from what was found."""
    layer = layer_of(model, guilty.probe)
    node = inspection.guilty[0] if inspection is not None else None
    others = tuple(diff.probe for diff in found.isolated if diff is not guilty)
    return replace(
        base,
        position=guilty.position,
        batch=guilty.batch,
        layer=layer,
        layer_kind=model.layers[layer].kind if layer is not None else None,
        module=str(node.name or "").split("/")[0] if node is not None and "/" in str(node.name) else guilty.probe,
        probe=guilty.probe,
        node=str(node.name or "") if node is not None else "",
        op_type=str(node.op_type) if node is not None else "",
        index=guilty.index,
        expected=None if guilty.expected is None else number(guilty.expected),
        actual=None if guilty.actual is None else number(guilty.actual),
        difference=number(guilty.difference),
        limit=guilty.limit,
        cause=cause.name if cause else "",
        why=cause.sentence if cause else "",
        first_wrong=found.cascade[0].probe if found.cascade else "",
        also=others,
        checked=len(found.probes),
    )
