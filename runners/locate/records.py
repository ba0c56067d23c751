"""A location in words."""

from __future__ import annotations

from kvparity.runners.diff.location import Location, Number

__all__ = ["paragraph"]

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
    if found.fault == "export" and found.reference:
        text.append(f"Reference: {found.reference}.")
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
