"""Likely causes in caches: too many or too few rows, and rows that are shifted."""

from __future__ import annotations

import numpy as np

from kvparity.runners.locate.evidence import Evidence, Said, equal, finite


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


def shifted_rows(evidence: Evidence) -> Said:
    """Rows of a cache in the wrong place, or rows that should be new but are old."""
    diff = evidence.diff
    if diff.probe.rpartition(".")[2] not in ("key", "value") or not finite(diff):
        return None
    want, got = np.asarray(diff.want, np.float64), np.asarray(diff.got, np.float64)
    if diff.over.shape[0] != 1 or want.shape[2] < 3:
        return None
    past = want.shape[2] - evidence.call.step.tokens
    for name, array in evidence.reference.items() if past > 1 and not diff.over[0][past:].any() else ():
        if name != diff.probe and array.shape == want.shape and equal(evidence, got[:, :, :past], array[:, :, :past]):
            return "cache-neighbour", f"the past rows are those of {name}: the cache of another layer"
    for shift in (1, -1):
        bad = np.flatnonzero(diff.over[0])
        pairs = [(row, row + shift) for row in bad.tolist() if 0 <= row + shift < want.shape[2]]
        same = [row for row, source in pairs if equal(evidence, got[:, :, row], want[:, :, source])]
        if same and len(same) >= 0.75 * len(pairs):
            where = "older" if shift < 0 else "newer"
            return "cache-shifted", f"cache rows are shifted: row r holds the row that is one slot {where}"
    if diff.over[0][-1] and not diff.over[0][:-1].any() and evidence.call.step.tokens == 1:
        row = got[:, :, -1:]
        old = [index for index in range(want.shape[2] - 1) if equal(evidence, row, want[:, :, index : index + 1])]
        if old:
            return "cache-stale", f"the newest cache row is stale: it holds the row of slot {old[0]}"
    return None
