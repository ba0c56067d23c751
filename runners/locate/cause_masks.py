"""Likely causes in attention masks: which keys a query may attend to."""

from __future__ import annotations

import numpy as np

from kvparity.runners.locate.evidence import Evidence
from kvparity.runners.locate.probe_diff import BLOCKED

__all__ = ["window_from_position", "wrong_mask"]

_NEAR = 2  # slots around the window's end in which a first error points at the window


def wrong_mask(evidence: Evidence) -> tuple[str, str] | None:
    """A mask probe says exactly which (query, key) pairs are wrong."""
    diff = evidence.diff
    if not diff.probe.startswith("mask.") or diff.position is None:
        return None
    kind = diff.probe.removeprefix("mask.")
    want, got = diff.want > BLOCKED / 2, diff.got > BLOCKED / 2
    between = diff.got[(diff.got < 0) & (diff.got > BLOCKED / 2)]
    if between.size:
        return "mask-weak", f"blocked entries are {float(between.min()):.6g}, which is not far enough below zero"
    live = evidence.call.live(want.shape[2])
    wrong = (want != got) & live[:, None, :, None]
    batch, _, query, key = np.nonzero(wrong)
    count = want.shape[3] - want.shape[2]
    distance = query + count - key
    extra = bool(got[wrong].all())
    if extra and _all_dead(evidence, batch, key, want.shape[3]):
        return "padding-ignored", "left padding is not masked: queries see padded slots"
    distances = set(distance.tolist())
    other = evidence.reference.get("mask.full" if kind != "full" else "mask.sliding")
    same = other is not None and other.shape == got.shape and np.array_equal(np.asarray(other) > BLOCKED / 2, got)
    if same and len(distances) > 1 and min(distances) >= 0:  # what sees the future is no other kind's mask
        return "masks-swapped", f"the mask of {kind} layers is the one of the other kind"
    return _by_distance(evidence, kind, distances, want.shape[3], extra=extra, missing=not got[wrong].any())


def _all_dead(evidence: Evidence, batch: np.ndarray, key: np.ndarray, rows: int) -> bool:
    dead = ~evidence.call.live(rows)
    return bool(dead.any() and dead[batch, key].all())


def _by_distance(
    evidence: Evidence, kind: str, distances: set[int], rows: int, *, extra: bool, missing: bool
) -> tuple[str, str] | None:
    """Distances are query slot minus key slot; 0 is the token itself, window - 1 the oldest visible."""
    window = next((layer.window for layer in evidence.model.layers if layer.kind == kind), None)
    if extra and max(distances) < 0:
        if distances == {-1}:
            return "causal-off-by-one", "queries see one token of the future: the causal limit is off by one"
        return "causal-dropped", "queries see future tokens: the causal limit is missing"
    if missing and distances == set(range(len(distances))):
        count = len(distances)
        return "causal-off-by-one", f"queries do not see their newest {count} slots: the causal limit is off by {count}"
    if window is None:
        return None
    if extra and min(distances) >= window:
        seen = max(distances) + 1
        if seen == rows:
            return (
                "window",
                f"window too long or missing: queries see all {rows} rows there are, the window is {window}",
            )
        if len(distances) == 1:
            return "window", f"window off by one: queries see {window + 1} rows, the window is {window}"
        return "window", f"window too long or missing: queries see up to {seen} rows, the window is {window}"
    if missing and max(distances) < window:
        seen = min(distances)
        word = "off by one" if seen == window - 1 else "too short"
        return "window", f"window {word}: queries see {seen} rows, the window is {window}"
    return None


def window_from_position(evidence: Evidence) -> tuple[str, str] | None:
    """Sliding layers alone, wrong from the window's end on."""
    window, position = evidence.model.window, evidence.diff.position
    parts = evidence.diff.probe.split(".")
    if window is None or position is None or parts[0] != "layers" or parts[-1] != "context":
        return None
    layer = evidence.model.layers[int(parts[1])]
    if layer.kind == "sliding" and abs(position - window) <= _NEAR:
        return "window", f"a sliding layer is wrong from position {position} on; the window is {window}"
    return None
