"""Likely causes in attention: it is computed again from right inputs, with one thing wrong at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from kvparity.exporter.contract.spec import LayerSpec
from kvparity.runners.locate.evidence import Evidence, equal, layer_of
from kvparity.runners.locate.probe_diff import BLOCKED, settle_mask

__all__ = ["wrong_attention"]

Float = npt.NDArray[np.float64]
_CLOSE = 1e-8
_LARGEST = 1 << 22  # scores: more are not computed again for a guess


@dataclass(frozen=True, eq=False)
class _Attention:
    """What attention is made of: (batch, heads, queries, dim), keys and values with a head per query head."""

    query: Float
    key: Float
    value: Float
    mask: Float
    scale: float
    cap: float | None = None

    def context(self) -> Float:
        """(batch, queries, heads, dim)."""
        scores = np.einsum("bhqd,bhkd->bhqk", self.query, self.key) * self.scale
        if self.cap is not None:
            scores = np.tanh(scores / self.cap) * self.cap
        scores = scores + self.mask
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return np.einsum("bhqk,bhkd->bqhd", weights, self.value)


def wrong_attention(evidence: Evidence) -> tuple[str, str] | None:
    """Which single change of right attention gives exactly what the graph gives."""
    diff = evidence.diff
    prefix, _, part = diff.probe.rpartition(".")
    if part != "context" or diff.position is None or diff.want.ndim != 4:
        return None
    base = _right(evidence, prefix)
    if base is None:
        return None
    for name, sentence, changed in _changes(evidence, base, prefix):
        if _same(evidence, changed.context(), diff.got):
            return name, sentence
    return None


def _right(evidence: Evidence, prefix: str) -> _Attention | None:
    """Attention as it should be, at the scale that reproduces the reference; None where none does."""
    layer = _layer(evidence)
    names = [f"{prefix}.query", f"{prefix}.key", f"{prefix}.value", f"mask.{layer.kind}"]
    if names[1] not in evidence.reference:  # a layer that shares another's cache
        owner = evidence.model.slot_of(layer).layer
        names[1:3] = [name.replace(prefix, f"layers.{owner}.self_attn") for name in names[1:3]]
    if any(name not in evidence.reference for name in names):
        return None
    query, key, value, mask = (np.asarray(evidence.reference[name], np.float64) for name in names)
    if query.shape[1] % key.shape[1] or query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2] > _LARGEST:
        return None
    repeat = query.shape[1] // key.shape[1]
    key, value = np.repeat(key, repeat, axis=1), np.repeat(value, repeat, axis=1)
    base = _Attention(query, key, value, np.asarray(settle_mask(mask), np.float64), 1.0)
    for scale in (1.0, query.shape[3] ** -0.5):
        if _same(evidence, replace(base, scale=scale).context(), evidence.diff.want):
            return replace(base, scale=scale)
    return None


def _changes(evidence: Evidence, base: _Attention, prefix: str) -> Iterator[tuple[str, str, _Attention]]:
    size = base.query.shape[3]
    for factor, words in (
        (size**-0.5, "one over the square root of the head size"),
        (1 / size, "one over the head size"),
    ):
        for scale in (base.scale * factor, base.scale / factor):
            times = scale / base.scale
            yield "scale", f"scores are {times:.6g} times what they should be ({words})", replace(base, scale=scale)
    heads, layer = base.query.shape[1], _layer(evidence)
    shared = evidence.model.slot_of(layer).kv_heads
    tiled = np.arange(heads).reshape(shared, -1).T.ravel()
    for part in ("key", "value"):
        rows = getattr(base, part)
        changed = _with(base, part, rows[:, tiled])
        yield "kv-heads", f"{part} heads are tiled over the query heads where each should be repeated", changed
        for head in range(0, heads, heads // shared):
            changed = _with(base, part, rows[:, [head] * heads])
            yield "kv-heads", f"every query head reads {part} head {head // (heads // shared)}", changed
    tried = evidence.experiment
    if tried is not None and f"mask.{layer.kind}" not in tried.recorded:  # off by one is likelier than another's mask
        yield from _windows(evidence, base, layer.window)
    for kind in ("full", "sliding", "chunked"):
        other = evidence.reference.get(f"mask.{kind}")
        if other is not None and other.shape == base.mask.shape:
            mask = np.asarray(settle_mask(other), np.float64)
            yield "masks-swapped", f"the layer uses the mask of {kind} layers", replace(base, mask=mask)
    yield "mask-missing", "the layer uses no mask", replace(base, mask=np.zeros_like(base.mask))
    for cap in (20.0, 30.0, 50.0):
        yield "attention-cap", f"scores are capped at {cap:g}", replace(base, cap=cap)
    for name, array in evidence.reference.items():
        stem, _, part = name.rpartition(".")
        if part in ("key", "value") and stem != prefix and array.ndim == 4:
            rows = np.repeat(np.asarray(array, np.float64), heads // array.shape[1], axis=1)
            if rows.shape == getattr(base, part).shape:
                changed = _with(base, part, rows)
                yield "other-value", f"the layer reads {name}", changed


def _layer(evidence: Evidence) -> LayerSpec:
    """The layer whose attention is looked at."""
    index = layer_of(evidence.model, evidence.diff.probe)
    assert index is not None  # a context is always a layer's
    return evidence.model.layers[index]


def _windows(evidence: Evidence, base: _Attention, window: int | None) -> Iterator[tuple[str, str, _Attention]]:
    """A sliding layer with a window that is off by one, over the rows that there are."""
    if window is None:
        return
    full = evidence.reference.get("mask.full")
    queries, rows = base.mask.shape[2:]
    for seen in (window - 1, window + 1):
        distance = np.arange(queries)[:, None] + rows - queries - np.arange(rows)[None, :]
        mask = base.mask
        if seen < window:
            mask = np.where(distance >= seen, BLOCKED, mask)
        elif full is not None and full.shape == mask.shape:
            mask = np.where(distance < seen, settle_mask(full), mask)
        yield (
            "window",
            f"queries see {seen} rows, the window is {window}",
            replace(base, mask=np.asarray(mask, np.float64)),
        )


def _with(base: _Attention, part: str, rows: Float) -> _Attention:
    return replace(base, key=rows) if part == "key" else replace(base, value=rows)


def _same(evidence: Evidence, left: Float, right: npt.NDArray[np.generic]) -> bool:
    live = evidence.call.live(left.shape[1])
    return equal(evidence, left[live], np.asarray(right, np.float64)[live], _CLOSE)
