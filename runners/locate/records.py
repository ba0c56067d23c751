"""What locating found, as one record and as one paragraph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from runners.diff.records import Number

__all__ = ["Fault", "Location", "paragraph"]

Fault = Literal["export", "engine", "none", "unknown"]


@dataclass(frozen=True)
class Location:
    """Where a candidate leaves the reference, and whose fault it is.

    Attributes:
        fault: ``export`` (the graph in float64 is not what PyTorch computes in float64), ``engine`` (it is, and the
            engine computes something else), ``none`` (neither was found in this call), ``unknown`` (could not tell).
        runner: Candidate.
        case: Case.
        step: Call, from 0.
        graph: Graph of the call.
        position: First wrong token slot of the guilty value.
        batch: Its batch row.
        layer: Decoder layer; null outside the layers.
        layer_kind: ``full`` or ``sliding``.
        module: Path of the module that makes the value.
        probe: Name of the guilty value.
        node: ONNX node where the segment leaves the reference.
        op_type: Its operator.
        index: Index of the value shown.
        expected: Value that should be there.
        actual: Value that is.
        difference: Largest difference of the guilty value, computed from right inputs.
        limit: What would have passed.
        cause: Short name of the likely cause; empty where no pattern fits.
        why: The likely cause in a sentence.
        first_wrong: First wrong value in execution order when the graph runs as it is.
        also: Other values that are wrong although their inputs are right.
        checked: Values compared.
        reference: What the values were compared with.
        note: What a reader should know of this answer.
        sentence: All of it as a paragraph.
    """

    fault: Fault
    runner: str
    case: str
    step: int
    graph: str
    position: int | None = None
    batch: int | None = None
    layer: int | None = None
    layer_kind: str | None = None
    module: str = ""
    probe: str = ""
    node: str = ""
    op_type: str = ""
    index: tuple[int, ...] | None = None
    expected: Number | None = None
    actual: Number | None = None
    difference: Number | None = None
    limit: float | None = None
    cause: str = ""
    why: str = ""
    first_wrong: str = ""
    also: tuple[str, ...] = ()
    checked: int = 0
    reference: str = ""
    note: str = ""
    sentence: str = ""


_WHOSE = {
    "export": "The export is at fault: the graph, evaluated in float64, is not what PyTorch computes in float64.",
    "engine": "The engine is at fault: the graph evaluated in float64 is right, and {runner} computes something else.",
    "none": "No fault found in this call: the graph in float64 agrees with the reference, and so does {runner}.",
    "unknown": "Could not tell whose fault it is.",
}


def paragraph(found: Location) -> str:
    """A location in words."""
    text = [_WHOSE[found.fault].format(runner=found.runner)]
    if found.probe:
        text.append(_where(found))
        text.append(_values(found))
        if found.node:
            text.append(f"It leaves the reference in node {found.node} ({found.op_type}).")
        text.append(f"Likely cause: {found.why}." if found.why else "No known pattern fits; no cause is guessed.")
        if found.also:
            shown = ", ".join(found.also[:4]) + (f" and {len(found.also) - 4} more" if len(found.also) > 4 else "")
            text.append(f"Also wrong although computed from right values: {shown}.")
    if found.note:
        text.append(found.note)
    return " ".join(text)


def _where(found: Location) -> str:
    layer = f" in layer {found.layer} ({found.layer_kind})" if found.layer is not None else ""
    if found.layer is not None and not found.probe.startswith(("layers.", "present.")):
        layer = f", read by every {found.layer_kind} layer from layer {found.layer} on,"
    place = f", first at position {found.position}" if found.position is not None else ""
    row = f" of row {found.batch}" if found.batch else ""
    return (
        f"In case {found.case}, step {found.step} ({found.graph}), {found.probe}{layer} is the first of "
        f"{found.checked} values to be wrong while everything it is made of is right{place}{row}."
    )


def _values(found: Location) -> str:
    if found.expected is None or found.actual is None:
        return "Its shape is not the expected one."
    at = f" at index {list(found.index)}" if found.index else ""
    difference = f"{found.difference:.3g}" if isinstance(found.difference, float) else str(found.difference)
    return (
        f"Expected {_show(found.expected)}, actual {_show(found.actual)}{at}; largest difference {difference} "
        f"(limit {found.limit:.2g})."
    )


def _show(value: Number) -> str:
    return f"{value:.9g}" if isinstance(value, float) else value
