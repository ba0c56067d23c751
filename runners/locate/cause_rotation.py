"""Likely causes in rotary embeddings: their tables, and queries and keys rotated by other ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvparity.runners.locate.cause_values import other_value
from kvparity.runners.locate.evidence import Evidence, Float, Said, equal, finite, layer_of, live, shift_of

Int = npt.NDArray[np.int64]


def rotary_tables(evidence: Evidence) -> Said:
    """Cos or sin: positions off, another base, or the other layer kind's table."""
    diff = evidence.diff
    if not diff.probe.startswith("rotary") or not finite(diff):
        return None
    want, got = live(evidence, diff.want), live(evidence, diff.got)
    shift = shift_of(evidence, want, got) if len(want) > 2 else None
    if shift is not None:
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
    cos = probe.endswith("cos")
    undo = np.arccos if cos else np.arcsin
    with np.errstate(all="ignore"):
        expected, actual = undo(want[at]), undo(got[at])
        ratio = actual / expected
    still = (expected < 1e-12) & (np.abs(want[at] - got[at]) > evidence.diff.limit)
    if still.any():
        return (
            "rope-share",
            f"{int(still.sum())} dimensions are rotated that should not be: another share of rotated ones",
        )
    room = evidence.precision * 1e3  # an angle is known to a thousandth from there on
    known = np.isfinite(ratio) & (expected > max(1e-4, room**0.5 if cos else room)) & (expected < 1.0)
    if not known.any():
        return None
    return _ratios(ratio[known], int(positions[at]), evidence)


def _ratios(ratio: Float, position: int, evidence: Evidence) -> Said:
    """Actual angles over expected ones, at one position."""
    same = 1e-5 if evidence.precision < 1e-9 else 2e-3
    first, last = float(ratio[0]), float(ratio[-1])
    if np.ptp(ratio) < same:
        if abs(first + 1) < same:
            return "rope-direction", "every rotary angle has the other sign: the rotation goes backwards"
        shifted = first * position
        if position > 1 and abs(shifted - round(shifted)) < 100 * same:
            return "positions", f"rotary positions are off by {round(shifted) - position:+d}"
        if abs(first - 1) < same:
            return None
        return "rope-factor", f"every rotary frequency is {first:.6g} times what it should be: a scaling factor"
    return "rope-theta", (
        f"rotary frequencies are {min(ratio):.6g} to {max(ratio):.6g} times what they should be: another base (theta) "
        f"or another share of rotated dimensions ({first:.6g} in the fastest slow dimension, {last:.6g} in the last)"
    )


def _live_positions(evidence: Evidence, count: int) -> Int:
    case, step = evidence.call.case, evidence.call.step
    live = case.mask[:, step.start : step.stop] == 1
    positions = case.positions[:, step.start : step.stop]
    flat = positions[live] if live.sum() == count else positions[0]
    return np.asarray(flat[:count])


def unrotated(evidence: Evidence) -> Said:
    """New queries or keys that were not turned at all."""
    turn = _turn(evidence)
    if turn is not None and equal(evidence, turn.got, turn.source):
        return "unrotated", f"the new {turn.part} rows are not rotated"
    return None


def same_length(evidence: Evidence) -> Said:
    """Queries, keys or values of the right length and another direction."""
    diff = evidence.diff
    part = diff.probe.rpartition(".")[2]
    if part not in ("query", "key", "value") or not finite(diff):
        return None
    new = evidence.call.step.tokens
    if diff.over[:, :-new].any():
        return None  # rows that this call did not make are wrong as well
    rows = [np.asarray(array, np.float64)[:, :, -new:] for array in (diff.want, diff.got)]
    sizes = [np.sqrt((array * array).sum(axis=-1)) for array in rows]
    if equal(evidence, sizes[1], sizes[0], 1e-8):
        position = diff.position or 0
        if part == "value":
            return "value-rotated", "value rows have the right length and the wrong direction: they were rotated"
        return "rope", f"{part} rows have the right length, but from position {position} on another direction: rotation"
    return None


@dataclass(frozen=True, eq=False)
class _Turn:
    """New queries or keys of one layer before and after their rotation, live tokens of the first row.

    Attributes:
        part: ``query`` or ``key``.
        source: (tokens, heads, head_dim) before.
        got: The same after, as the candidate has it.
        cos: (tokens, columns), as the layer's kind should have it; columns may be fewer than head_dim.
        sin: The same.
        positions: (tokens,).
    """

    part: str
    source: Float
    got: Float
    cos: Float
    sin: Float
    positions: Int

    def by(self, cos: Float, sin: Float, *, neighbours: bool = False) -> Float:
        """The source, turned: element i with element i + columns/2, or with its neighbour."""
        columns = cos.shape[1]
        turned, rest = self.source[..., :columns], self.source[..., columns:]
        c, s = cos[:, None, : columns // 2], sin[:, None, : columns // 2]
        halves = (turned[..., 0::2], turned[..., 1::2]) if neighbours else np.split(turned, 2, axis=-1)
        left, right = halves[0] * c - halves[1] * s, halves[1] * c + halves[0] * s
        joined = np.stack((left, right), -1).reshape(turned.shape) if neighbours else np.concatenate((left, right), -1)
        return np.concatenate((joined, rest), axis=-1)

    def mixed(self) -> Float:
        """The source with neighbours as pairs, but with the tables of halves."""
        columns = self.cos.shape[1]
        turned, rest = self.source[..., :columns], self.source[..., columns:]
        other = np.stack((-turned[..., 1::2], turned[..., 0::2]), -1).reshape(turned.shape)
        return np.concatenate((turned * self.cos[:, None] + other * self.sin[:, None], rest), axis=-1)

    def angles(self) -> Float | None:
        """(tokens, columns/2): by how much halves were turned; None where they were not only turned."""
        columns = self.cos.shape[1]
        before, after = (
            array[..., : columns // 2] + 1j * array[..., columns // 2 : columns] for array in (self.source, self.got)
        )
        if np.abs(np.abs(after) - np.abs(before)).max() > 1e-3 * float(np.abs(before).max()):
            return None
        return np.angle((after * before.conj()).sum(axis=1))


def _turn(evidence: Evidence) -> _Turn | None:
    diff, call, reference = evidence.diff, evidence.call, evidence.reference
    owner, _, part = diff.probe.rpartition(".")
    index = layer_of(evidence.model, diff.probe)
    if part not in ("query", "key") or index is None or not finite(diff) or diff.want.ndim != 4:
        return None
    path = f"layers.{index}.self_attn" if owner.startswith("present.") else owner
    source = reference.get(f"{path}.{part[0]}_norm", reference.get(f"{path}.{part[0]}_proj"))
    cos, sin = (_table(evidence, index, name) for name in ("cos", "sin"))
    new, heads, size = call.step.tokens, diff.want.shape[1], diff.want.shape[3]
    if source is None or cos is None or sin is None or source.size != call.case.batch * new * heads * size:
        return None
    kept = min(new, diff.want.shape[2])  # a sliding cache may hold fewer rows than the call has tokens
    shown = call.live(kept)[0]
    rows = np.asarray(source, np.float64).reshape(-1, new, heads, size)[0][-kept:][shown]
    got = np.swapaxes(np.asarray(diff.got, np.float64)[:, :, -kept:], 1, 2)[0][shown]
    positions = np.asarray(call.case.positions[0, call.step.stop - kept : call.step.stop][shown])
    return _Turn(part, rows, got, cos[-kept:][shown], sin[-kept:][shown], positions)


def _table(evidence: Evidence, layer: int, part: str) -> Float | None:
    """(tokens, columns): the cos or sin of a layer's kind for the first row; None where there is no such table."""
    tables = {name: array for name, array in evidence.reference.items() if name.startswith("rotary")}
    own = [name for name in tables if f".{evidence.model.layers[layer].kind}" in name] or list(tables)
    found = next((np.asarray(tables[name], np.float64) for name in own if name.endswith(part)), None)
    fits = found is not None and found.ndim == 3 and found.shape[1] == evidence.call.step.tokens
    return found[0] if found is not None and fits else None


def rotated(evidence: Evidence) -> Said:
    """New queries or keys turned otherwise: in other pairs, backwards, by other positions, with another base."""
    turn = _turn(evidence)
    if turn is None or not turn.got.size:
        return None
    ways = {
        "rope-interleaved": ("neighbours are turned as pairs, not the two halves", (turn.cos, turn.sin), True),
        "rope-direction": ("they are turned backwards", (turn.cos, -turn.sin), False),
        "rope-twice": ("they are turned twice", (turn.cos**2 - turn.sin**2, 2 * turn.cos * turn.sin), False),
    }
    for name, (words, tables, neighbours) in ways.items():
        if equal(evidence, turn.by(*tables, neighbours=neighbours), turn.got):
            return name, f"new {turn.part} rows are rotated wrongly: {words}"
    if equal(evidence, turn.mixed(), turn.got):
        return (
            "rope-interleaved",
            f"new {turn.part} rows are rotated wrongly: neighbours are paired, angles are of halves",
        )
    return _other_angles(turn, turn.angles())


def _other_angles(turn: _Turn, actual: Float | None) -> Said:
    """What frequencies turned the halves: angles grow by one frequency from a position to the next."""
    pairs = np.flatnonzero(np.diff(turn.positions) == 1)
    if actual is None or not pairs.size:
        return None
    half = turn.cos.shape[1] // 2
    expected = np.arctan2(turn.sin[:, :half], turn.cos[:, :half])
    steps = [np.median(_wrapped(angle[pairs + 1] - angle[pairs]), axis=0) for angle in (actual, expected)]
    if np.abs(steps[0] - steps[1]).max() < 1e-3:
        for shift in (1, -1, 2, -2, 3, -3):
            if np.abs(_wrapped(actual - expected - shift * steps[1])).max() < 2e-2:
                return "positions", f"new {turn.part} rows are rotated by positions that are off by {shift:+d}"
        return None
    bases = [_base(step) for step in steps]
    if bases[0] is not None and bases[1] is not None:
        return "rope-theta", f"{turn.part} rows are rotated with base {bases[0]:.4g}, the model's is {bases[1]:.4g}"
    turning = [int((np.abs(step) > 1e-4).sum()) for step in steps]
    if turning[0] != turning[1]:
        return (
            "rope-share",
            f"{turning[0]} of {half} pairs of {turn.part} rows are rotated, the model's are {turning[1]}",
        )
    return "rope-frequencies", f"{turn.part} rows are rotated with other frequencies than the model's"


def _base(frequencies: Float) -> float | None:
    """theta, where frequency i is theta ** (-i / count) in every pair that can be told."""
    index = np.arange(len(frequencies))
    told = (index > 0) & (frequencies > 1e-3)
    if not told.any() or abs(frequencies[0] - 1) > 1e-2:
        return None
    bases = frequencies[told] ** (-len(frequencies) / index[told])
    middle = float(np.median(bases))
    return middle if np.abs(np.log(bases / middle)).max() < 0.1 else None


def _wrapped(angle: Float) -> Float:
    return np.asarray((angle + np.pi) % (2 * np.pi) - np.pi)


def growing(evidence: Evidence) -> Said:
    """An error that is nothing at the first position and grows from there: rotation."""
    diff = evidence.diff
    if diff.probe.rpartition(".")[2] not in ("query", "key") or not finite(diff) or diff.over.shape[0] != 1:
        return None
    rows = np.abs(live(evidence, diff.want) - live(evidence, diff.got))
    by_slot = rows.reshape(len(rows), -1).max(axis=1)
    if len(by_slot) > 8 and by_slot[0] <= diff.limit and by_slot[: len(by_slot) // 2].mean() < by_slot.mean():
        return "rope", "the error is zero at the first position and grows: rotation"
    return None
