"""The first divergence of a case, as a record and as one sentence that a person reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kvparity.exporter.contract.cases import Case, Step
from kvparity.exporter.contract.spec import ModelSpec, SlotSpec
from kvparity.runners.diff.names import slot_of
from kvparity.runners.diff.records import Divergence, Number, Question, number
from kvparity.runners.diff.tensor import TensorDiff

__all__ = ["divergence_of"]


def divergence_of(
    question: Question,
    runner: str,
    case: Case,
    step: Step,
    bad: Sequence[TensorDiff],
    model: ModelSpec,
    *,
    float64: bool = False,
) -> Divergence:
    """Choose among the mismatches of a case's first bad call: lowest slot, then lowest layer, logits last.

    At the same slot a wrong cache explains wrong logits, never the other way round. Where the logits go over the
    limit at a lower slot than any cache, ``also`` names the earliest layer whose cache is wrong in the same call.

    Args:
        question: What is being asked.
        runner: Runner's label.
        case: The case.
        step: The call.
        bad: Its mismatches, in port order; at least one.
        model: For layers and windows.
        float64: Whether the reference was PyTorch in float64.
    """
    diff = min(bad, key=lambda found: (-1 if found.bad is None else found.bad.position, _depth(model, found.name)))
    slot, place = slot_of(model, diff.name), diff.bad
    layers = [found.layer for found in (slot_of(model, other.name) for other in bad) if found is not None]
    record = Divergence(
        question=question,
        runner=runner,
        case=case.name,
        step=step.index,
        graph=step.graph,
        tokens=step.tokens,
        tensor=diff.name,
        layer=slot.layer if slot else None,
        layer_kind=slot.kind if slot else None,
        window=slot.window if slot else None,
        reason=diff.reason or "value",
        position=place.position if place else None,
        batch=place.batch if place else None,
        index=place.index if place else None,
        expected=number(place.expected) if place else None,
        actual=number(place.actual) if place else None,
        difference=number(abs(place.actual - place.expected)) if place else None,
        limit=diff.limit,
        also=min(layers) if slot is None and layers else None,
        sentence="",
    )
    return replace(record, sentence=_sentence(record, case, slot, diff.detail, float64=float64))


_AGAINST = {"self": "its own other run", "recording": "the recording", "bundle": "the other bundle"}


def _depth(model: ModelSpec, tensor: str) -> int:
    slot = slot_of(model, tensor)
    return len(model.layers) if slot is None else slot.layer


def _sentence(record: Divergence, case: Case, slot: SlotSpec | None, detail: str, *, float64: bool) -> str:
    against = _AGAINST.get(record.question, "PyTorch in float64" if float64 else "PyTorch")
    tokens = f"{record.tokens} token" + ("s" if record.tokens > 1 else "")
    where = f"case {record.case}, step {record.step} ({record.graph}, {tokens})"
    if record.position is not None:
        where += f", position {record.position}" + _row(case, record)
    return f"{record.runner} first differs from {against} in {where}: {_what(record, slot, detail)}"


def _row(case: Case, record: Divergence) -> str:
    if case.batch == 1 or record.batch is None:
        return ""
    pad = case.pads[record.batch]
    return f" of row {record.batch}" + (f" ({pad} padded)" if pad else "")


def _what(record: Divergence, slot: SlotSpec | None, detail: str) -> str:
    name = record.tensor
    if slot is not None:
        window = f", window {slot.window}" if slot.window else ""
        name += f" of layer {slot.layer} ({slot.kind}{window})"
    elif name == "logits" and record.index is not None:
        name += f" of token {record.index[-1]}"
    if record.expected is None or record.actual is None:
        return f"{name}: {detail}"
    text = f"{name} is {{}}, expected {{}}".format(*_pair(record.actual, record.expected))
    if record.reason != "value":
        return f"{text} ({detail})"
    text += f", off by {_show(record.difference, 3)} (limit {record.limit:.3g})"
    return text + (f"; earliest wrong cache in the same call: layer {record.also}" if record.also is not None else "")


def _pair(actual: Number, expected: Number) -> tuple[str, str]:
    """Both values with as many digits as it takes to tell them apart."""
    for digits in range(6, 17):
        shown = _show(actual, digits), _show(expected, digits)
        if shown[0] != shown[1]:
            break
    return shown


def _show(value: object, digits: int = 6) -> str:
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)
