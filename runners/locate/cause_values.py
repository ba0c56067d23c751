"""Rules about numbers: factors, neighbours, shifts, rows, heads, precision."""

from __future__ import annotations

import math
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from exporter.names import file_name
from runners.locate.probe_diff import ProbeDiff

if TYPE_CHECKING:
    from runners.locate.causes import Evidence

Said = tuple[str, str] | None
Float = npt.NDArray[np.float64]
_CLOSE = 1e-9
_HALF = (10, 16)  # ONNX's numbers of float16 and bfloat16


def _live(evidence: Evidence, array: npt.NDArray[np.generic]) -> Float:
    """(live slots, rest): the slots that count, token axis first."""
    rows = np.moveaxis(np.asarray(array, np.float64), evidence.diff.axis, 1)
    live = np.broadcast_to(evidence.call.live(rows.shape[1]), rows.shape[:2])
    return np.asarray(rows[live])


def _equal(left: Float, right: Float, relative: float = _CLOSE) -> bool:
    if left.shape != right.shape or not left.size:
        return False
    return bool(np.abs(left - right).max() <= relative * max(1.0, float(np.abs(right).max())))


def _finite(diff: ProbeDiff) -> bool:
    return diff.position is not None and bool(np.isfinite(diff.got).all())


def wrong_rows(evidence: Evidence) -> Said:
    """A cache of another length."""
    diff = evidence.diff
    if diff.position is not None or diff.want.ndim != 4 or diff.got.ndim != 4:
        return None
    want, got = diff.want.shape[2], diff.got.shape[2]
    if want == got:
        return None
    return "cache-rows", f"the cache holds {got} rows, expected {want}: {abs(got - want)} too {_many(got > want)}"


def _many(more: bool) -> str:
    return "many" if more else "few"


def wrong_weight(evidence: Evidence) -> Said:
    """An initializer of the segment is not what the checkpoint holds."""
    found = evidence.inspection
    if found is None or not found.wrong_weights:
        return None
    name, (want, got) = next(iter(found.wrong_weights.items()))
    if want.shape != got.shape:
        return "weight", f"weight {name} has shape {got.shape}, the checkpoint's has {want.shape}"
    wrong = np.asarray(want != got)
    text = f"weight {name} differs from the checkpoint in {int(wrong.sum())} of {wrong.size} values"
    if wrong.ndim == 2:
        rows = np.flatnonzero(wrong.any(axis=1))
        if rows.size == 1:
            text += f", all in row {rows[0]}"
        if not np.asarray(got)[wrong].any():
            text += ", which are zero"
    with np.errstate(all="ignore"):
        ratio = np.asarray(got, np.float64)[wrong] / np.asarray(want, np.float64)[wrong]
    if np.isfinite(ratio).all() and np.ptp(ratio) < 1e-6 * max(abs(float(ratio.mean())), 1e-30) and ratio.mean():
        text += f", by a factor of {float(ratio.mean()):.9g}"
    if _equal(np.asarray(got, np.float64), np.asarray(want, np.float64) + 1.0, 1e-6):
        return "norm-weight", f"weight {name} is the checkpoint's plus one: the convention of another family"
    if _equal(np.asarray(got, np.float64), np.asarray(want, np.float64), 1e-3) and np.array_equal(
        np.asarray(got, np.float16), np.asarray(got)
    ):
        text += "; its values were rounded to float16"
    return "weight", text


def rotary_tables(evidence: Evidence) -> Said:
    """Cos or sin: positions off, another base, or the other layer kind's table."""
    diff = evidence.diff
    if not diff.probe.startswith("rotary") or not _finite(diff):
        return None
    want, got = _live(evidence, diff.want), _live(evidence, diff.got)
    for shift, left, right in ((1, got[:-1], want[1:]), (-1, got[1:], want[:-1])):
        if len(want) > 2 and _equal(left, right):
            return "positions", f"rotary positions are off by {shift}: row p holds the table of position p{shift:+d}"
    return _other_position(want, got, evidence) or other_value(evidence) or _angles(want, got, diff.probe, evidence)


def _other_position(want: Float, got: Float, evidence: Evidence) -> Said:
    """Wrong rows that hold the table of another position of the same call, all equally far away in their row."""
    positions = _live_positions(evidence, len(want))
    wrong = np.flatnonzero(np.abs(want - got).max(axis=1) > evidence.diff.limit)
    for at in wrong[:1].tolist():
        for other in np.flatnonzero(np.abs(want - got[at]).max(axis=1) <= evidence.diff.limit)[:1].tolist():
            shift = int(positions[other] - positions[at])
            return (
                "positions",
                f"rotary positions are wrong: position {positions[at]} is rotated as {positions[at] + shift}",
            )
    return None


def _angles(want: Float, got: Float, probe: str, evidence: Evidence) -> Said:
    """Compare angles at one slot, in the slow dimensions: one ratio for all is a factor, many are another base."""
    positions = _live_positions(evidence, len(want))
    usable = np.flatnonzero((positions > 0) & (np.abs(want - got).max(axis=1) > evidence.diff.limit))
    if not usable.size:
        return None
    at = int(usable[0])
    undo = np.arccos if probe.endswith("cos") else np.arcsin
    with np.errstate(all="ignore"):
        expected, actual = undo(want[at]), undo(got[at])
        ratio = actual / expected
    still = (expected < 1e-12) & (np.abs(want[at] - got[at]) > evidence.diff.limit)
    if still.any():
        return (
            "rope-share",
            f"{int(still.sum())} dimensions are rotated that should not be: another share of rotated ones",
        )
    known = ratio[np.isfinite(ratio) & (expected > 1e-4) & (expected < 1.0)]
    if not known.size:
        return None
    first, last, position = float(known[0]), float(known[-1]), int(positions[at])
    if np.ptp(known) < 1e-5:
        if abs(first + 1) < 1e-5:
            return "rope-direction", "every rotary angle has the other sign: the rotation goes backwards"
        shifted = first * position
        if position > 1 and abs(shifted - round(shifted)) < 1e-3:
            return "positions", f"rotary positions are off by {round(shifted) - position:+d}"
        if abs(first - 1) < 1e-5:
            return None
        return "rope-factor", f"every rotary frequency is {first:.6g} times what it should be: a scaling factor"
    return "rope-theta", (
        f"rotary frequencies are {min(known):.6g} to {max(known):.6g} times what they should be: another base (theta) "
        f"or another share of rotated dimensions ({first:.6g} in the fastest slow dimension, {last:.6g} in the last)"
    )


def _live_positions(evidence: Evidence, count: int) -> npt.NDArray[np.int64]:
    case, step = evidence.call.case, evidence.call.step
    live = case.mask[:, step.start : step.stop] == 1
    positions = case.positions[:, step.start : step.stop]
    flat = positions[live] if live.sum() == count else positions[0]
    return np.asarray(flat[:count])


def shifted_rows(evidence: Evidence) -> Said:
    """Rows of a cache in the wrong place, or rows that should be new but are old."""
    diff = evidence.diff
    if diff.probe.rpartition(".")[2] not in ("key", "value") or not _finite(diff):
        return None
    want, got = np.asarray(diff.want, np.float64), np.asarray(diff.got, np.float64)
    if diff.over.shape[0] != 1 or want.shape[2] < 3:
        return None
    past = want.shape[2] - evidence.call.step.tokens
    for name, array in evidence.reference.items() if past > 1 and not diff.over[0][past:].any() else ():
        if name != diff.probe and array.shape == want.shape and _equal(got[:, :, :past], array[:, :, :past]):
            return "cache-neighbour", f"the past rows are those of {name}: the cache of another layer"
    for shift in (1, -1):
        bad = np.flatnonzero(diff.over[0])
        pairs = [(row, row + shift) for row in bad.tolist() if 0 <= row + shift < want.shape[2]]
        same = [row for row, source in pairs if _equal(got[:, :, row], want[:, :, source])]
        if same and len(same) >= 0.75 * len(pairs):
            where = "older" if shift < 0 else "newer"
            return "cache-shifted", f"cache rows are shifted: row r holds the row that is one slot {where}"
    if diff.over[0][-1] and not diff.over[0][:-1].any() and evidence.call.step.tokens == 1:
        row = got[:, :, -1:]
        old = [index for index in range(want.shape[2] - 1) if _equal(row, want[:, :, index : index + 1])]
        if old:
            return "cache-stale", f"the newest cache row is stale: it holds the row of slot {old[0]}"
    return None


def other_value(evidence: Evidence) -> Said:
    """The value is another probe's: a neighbour layer's, the other kind's, something before or after it."""
    got = _live(evidence, evidence.diff.got)
    if not got.size or not _finite(evidence.diff) or np.ptp(got) == 0:
        return None
    for name, array in evidence.reference.items():
        if name == evidence.diff.probe or array.shape != evidence.diff.want.shape or name.startswith("mask."):
            continue
        if _equal(got, _live(evidence, array)):
            return "other-value", f"it holds what {name} should be"
    return None


def constant_factor(evidence: Evidence) -> Said:
    """Expected and actual are in one constant ratio."""
    if not _finite(evidence.diff):
        return None
    want, got = _live(evidence, evidence.diff.want), _live(evidence, evidence.diff.got)
    power = float((want * want).sum())
    if not power:
        return None
    factor = float((want * got).sum()) / power
    if abs(factor - 1) < 1e-12 or not _equal(got, want * factor, 1e-8) or not factor:
        return None
    known = _known_factor(evidence, factor)
    return "factor", f"every value is {factor:.9g} times what it should be" + (f", which is {known}" if known else "")


def _known_factor(evidence: Evidence, factor: float) -> str:
    model = evidence.model
    head = model.slots[0].head_dim if model.slots else 1
    named = {
        "the square root of 2": math.sqrt(2),
        f"the square root of the hidden size {model.hidden_size}": math.sqrt(model.hidden_size),
        f"the square root of the head size {head}": math.sqrt(head),
    }
    for words, number in named.items():
        if abs(factor / number - 1) < 1e-6:
            return words
        if abs(factor * number - 1) < 1e-6:
            return f"one over {words}"
    return ""


def half_precision(evidence: Evidence) -> Said:
    """Every value is one that float16 or bfloat16 can hold, although the reference's are not."""
    if not _finite(evidence.diff):
        return None
    got, want = _live(evidence, evidence.diff.got), _live(evidence, evidence.diff.want)
    with np.errstate(over="ignore"):
        half = np.array_equal(got.astype(np.float16).astype(np.float64), got)
    if half and not np.array_equal(want.astype(np.float16).astype(np.float64), want) and _equal(got, want, 1e-2):
        return "half-precision", "every value is one that float16 can hold: it was computed or stored in half precision"
    bits = got.astype(np.float32).view(np.uint32) & 0xFFFF
    if not bits.any() and np.array_equal(got.astype(np.float32), got) and _equal(got, want, 5e-2):
        return "half-precision", "every value is one that bfloat16 can hold: it was computed or stored in bfloat16"
    return None


def cast_away(evidence: Evidence) -> Said:
    """A node of the segment casts to a narrower float."""
    found = evidence.inspection
    for node in found.nodes if found is not None else ():
        low = node.op_type == "Cast" and node.attributes["to"].as_int() in _HALF
        if low and node in found.guilty:  # type: ignore[union-attr]
            return "half-precision", f"node {file_name(node)} casts to a narrower type"
    return None


def gelu_variant(evidence: Evidence) -> Said:
    """The other formula of GELU (erf for tanh or tanh for erf)."""
    found = evidence.inspection
    if found is None:
        return None
    scope = next((node.name.split("/")[0] for node in found.guilty if "act_fn" in (node.name or "")), None)
    if scope is None:
        return None
    inside = [node for node in found.nodes if (node.name or "").startswith(scope + "/")]
    outside = {value for node in found.nodes if node not in inside for value in node.inputs}
    last = next((node for node in reversed(inside) if node.outputs[0] in outside), inside[-1])
    made = np.asarray(found.values[str(last.outputs[0].name)], np.float64)
    gate_name = next((name for name in found.inputs if name in evidence.reference and "gate" in name), None)
    if gate_name is None:
        return None
    gate = np.asarray(evidence.reference[gate_name], np.float64)
    inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
    forms = {
        "GELU with erf": 0.5 * gate * (1 + np.vectorize(math.erf)(gate / math.sqrt(2))),
        "GELU with tanh": 0.5 * gate * (1 + np.tanh(inner)),
        "SiLU": gate / (1 + np.exp(-gate)),
        "ReLU": np.maximum(gate, 0.0),
        "the quick GELU": gate / (1 + np.exp(-1.702 * gate)),
    }
    for words, value in forms.items():
        if _equal(made.ravel(), value.ravel(), 1e-7):
            return "activation", f"the activation is {words}, which is not the model's"
    return None


def unrotated(evidence: Evidence) -> Said:
    """Queries, keys or values that carry a rotation too few or too many."""
    diff = evidence.diff
    layer, _, part = diff.probe.rpartition(".")
    before = {"query": "q_norm", "key": "k_norm"}.get(part)
    if part not in ("query", "key", "value") or not _finite(diff):
        return None
    source = None if before is None else evidence.reference.get(f"{layer}.{before}")
    new = evidence.call.step.tokens
    got, want = np.asarray(diff.got, np.float64)[:, :, -new:], np.asarray(diff.want, np.float64)[:, :, -new:]
    if source is not None and _equal(got, np.swapaxes(np.asarray(source, np.float64), 1, 2)):
        return "unrotated", f"the new {part} rows are not rotated"
    sizes = [np.sqrt((array * array).sum(axis=-1)) for array in (want, got)]
    if diff.over[:, :-new].any():
        return None  # rows that this call did not make are wrong as well
    if _equal(sizes[1], sizes[0], 1e-8):
        position = diff.position or 0
        if part == "value":
            return "value-rotated", "value rows have the right length and the wrong direction: they were rotated"
        return "rope", f"{part} rows have the right length, but from position {position} on another direction: rotation"
    return None


def permuted_heads(evidence: Evidence) -> Said:
    """Heads in another order."""
    diff = evidence.diff
    part = diff.probe.rpartition(".")[2]
    if part not in ("query", "key", "value", "context") or diff.want.ndim != 4 or not _finite(diff):
        return None
    axis = 2 if part == "context" else 1
    heads = diff.want.shape[axis]
    if not 1 < heads <= 8:
        return None
    want, got = np.moveaxis(diff.want, axis, 0), np.moveaxis(diff.got, axis, 0)
    order = tuple(
        next((head for head in range(heads) if _equal(np.asarray(mine), np.asarray(want[head]))), -1) for mine in got
    )
    if order in set(permutations(range(heads))) and order != tuple(range(heads)):
        return "heads", f"heads are in the order {list(order)}"
    if -1 not in order and order != tuple(range(heads)):
        return "heads", f"heads {list(order)} are used where {list(range(heads))} are expected"
    return None


def norm_factor(evidence: Evidence) -> Said:
    """A norm: one factor per row (its scale), or one per channel (its weight)."""
    diff = evidence.diff
    if "norm" not in diff.probe or not _finite(diff):
        return None
    want, got = (_live(evidence, array).reshape(-1, array.shape[-1]) for array in (diff.want, diff.got))
    by_row = (want * got).sum(axis=1, keepdims=True) / np.maximum((want * want).sum(axis=1, keepdims=True), 1e-300)
    if _equal(got, want * by_row, 1e-8):
        low, high = float(by_row.min()), float(by_row.max())
        if 1 - 1e-2 < low and high < 1 + 1e-2:
            return (
                "norm-eps",
                f"every row is scaled by its own factor, {low:.9g} to {high:.9g}: another epsilon, or another size of "
                "its input",
            )
        return "norm-scale", f"every row is scaled by its own factor, {low:.4g} to {high:.4g}: it is not normalised"
    by_channel = (want * got).sum(axis=0) / np.maximum((want * want).sum(axis=0), 1e-300)
    if _equal(got, want * by_channel, 1e-8):
        return "norm-weight", "every channel is scaled by a factor of its own: the norm's weight"
    return None


def few_channels(evidence: Evidence) -> Said:
    """Only some output channels are wrong: rows of a weight."""
    diff = evidence.diff
    if not _finite(diff) or diff.want.ndim != 3:
        return None
    wrong = np.abs(_live(evidence, diff.want) - _live(evidence, diff.got)).max(axis=0) > diff.limit
    if 0 < wrong.sum() <= max(wrong.size // 16, 1):
        shown = ", ".join(str(int(item)) for item in np.flatnonzero(wrong)[:4])
        return "weight", f"only output channels {shown} are wrong: those rows of a weight"
    return None


def few_tokens(evidence: Evidence) -> Said:
    """Only some tokens are wrong: rows of an embedding."""
    diff, call = evidence.diff, evidence.call
    if "embed" not in diff.probe or not _finite(diff):
        return None
    tokens = call.case.tokens[:, call.step.start : call.step.stop]
    over = diff.over[:, -tokens.shape[1] :]
    wrong, right = set(tokens[over].tolist()), set(tokens[~over].tolist())
    if wrong and not wrong & right and len(wrong) < 4:
        return "weight", f"only token {', '.join(map(str, sorted(wrong)))} is wrong: that row of the embedding"
    return None


def growing(evidence: Evidence) -> Said:
    """An error that is nothing at the first position and grows from there: rotation."""
    diff = evidence.diff
    if diff.probe.rpartition(".")[2] not in ("query", "key") or not _finite(diff) or diff.over.shape[0] != 1:
        return None
    rows = np.abs(_live(evidence, diff.want) - _live(evidence, diff.got))
    by_slot = rows.reshape(len(rows), -1).max(axis=1)
    if len(by_slot) > 8 and by_slot[0] <= diff.limit and by_slot[: len(by_slot) // 2].mean() < by_slot.mean():
        return "rope", "the error is zero at the first position and grows: rotation"
    return None
