"""Every number that says how far two tensors are apart; each is one function with its unit and direction declared.

A metric is computed over blocks of positions and combined over blocks, steps and cases, so that the logits of a long
case with a large vocabulary are never held in float64 at once. Columns, JSON keys and ``cli.py list metrics`` all come
from :data:`METRICS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = ["METRICS", "TOP_K", "Block", "Metric", "Totals", "finish", "measure", "merge"]

Floats = npt.NDArray[np.float64]
Totals = Mapping[str, Floats]
TOP_K = 5
_GROUP = 512


@dataclass(frozen=True, eq=False)
class Block:
    """Some positions of a tensor pair, both finite.

    Attributes:
        actual: (positions, features) float64.
        expected: (positions, features) float64.
    """

    actual: Floats
    expected: Floats

    @cached_property
    def error(self) -> Floats:
        """(positions, features): actual - expected."""
        return self.actual - self.expected

    @cached_property
    def top_expected(self) -> npt.NDArray[np.int64]:
        """(positions,): the first largest feature of the reference."""
        return np.asarray(self.expected.argmax(axis=1), np.int64)

    @cached_property
    def top_actual(self) -> npt.NDArray[np.int64]:
        """(positions,): the first largest feature of the candidate."""
        return np.asarray(self.actual.argmax(axis=1), np.int64)

    def top(self, which: Literal["actual", "expected"], k: int = TOP_K) -> npt.NDArray[np.int64]:
        """(positions, k): the k largest features, unordered; fewer where there are fewer features."""
        values: Floats = getattr(self, which)
        return _largest(values, min(k, values.shape[1]))

    @cached_property
    def squares(self) -> float:
        """Sum of the squared differences."""
        return _dot(self.error, self.error)

    @cached_property
    def divergence(self) -> Floats:
        """(positions,): KL(reference || candidate) of the next-token distributions, in nats."""
        expected = self.expected - self.expected.max(axis=1, keepdims=True)
        actual = self.actual - self.actual.max(axis=1, keepdims=True)
        weights = np.exp(expected)
        total = weights.sum(axis=1)
        apart = np.subtract(expected, actual, out=expected)
        mean = np.einsum("ij,ij->i", weights, apart) / total
        other = np.exp(actual, out=actual).sum(axis=1)
        return np.maximum(mean - np.log(total) + np.log(other), 0.0)


def _largest(values: Floats, k: int) -> npt.NDArray[np.int64]:
    """(positions, k): the k largest columns, unordered; of wide rows, out of the k groups with the largest values."""
    features = values.shape[1]
    if features < 16 * _GROUP:
        return np.argpartition(values, features - k, axis=1)[:, features - k :]
    whole = features // _GROUP * _GROUP
    groups = values[:, :whole].reshape(len(values), -1, _GROUP).max(axis=2)
    chosen = np.argpartition(groups, groups.shape[1] - k, axis=1)[:, -k:]
    columns = (chosen[:, :, None] * _GROUP + np.arange(_GROUP)).reshape(len(values), -1)
    columns = np.concatenate([columns, np.broadcast_to(np.arange(whole, features), (len(values), features - whole))], 1)
    picked = np.take_along_axis(values, columns, axis=1)
    best = np.argpartition(picked, picked.shape[1] - k, axis=1)[:, -k:]
    return np.take_along_axis(columns, best, axis=1)


def _dot(first: Floats, second: Floats) -> float:
    return float(np.dot(first.ravel(), second.ravel()))


Terms = Callable[[Block], Floats]
Combine = Literal["max", "ratio", "root_ratio", "cosine"]


@dataclass(frozen=True)
class Metric:
    """One number about a tensor pair.

    Attributes:
        name: JSON key.
        title: Column heading.
        unit: What the number is in.
        better: Which direction is better.
        logits_only: Whether it makes sense for logits only.
        combine: How the terms of several blocks become one number.
        terms: (positions, features) pair -> the terms of this block, float64.
    """

    name: str
    title: str
    unit: str
    better: Literal["lower", "higher"]
    logits_only: bool
    combine: Combine
    terms: Terms

    def merge(self, first: Floats, second: Floats) -> Floats:
        """Terms of two blocks together."""
        return np.maximum(first, second) if self.combine == "max" else first + second

    def finish(self, total: Floats) -> float:
        """The number itself."""
        if self.combine == "max":
            return float(total[0])
        if self.combine == "cosine":
            norm = float(np.sqrt(total[1]) * np.sqrt(total[2]))
            return float(total[0]) / norm if norm else float(total[1] == total[2])
        ratio = float(total[0]) / float(total[1]) if total[1] else (float("inf") if total[0] else 0.0)
        return float(np.sqrt(ratio)) if self.combine == "root_ratio" else ratio


def _metric(
    title: str, unit: str, better: Literal["lower", "higher"], combine: Combine, *, logits_only: bool = False
) -> Callable[[Terms], Metric]:
    """Turn a function of one block into a metric of the same name."""

    def wrap(terms: Terms) -> Metric:
        name = getattr(terms, "__name__", title)
        return Metric(name, title, unit, better, logits_only, combine, terms)

    return wrap


def _terms(*values: np.floating | float | int) -> Floats:
    return np.asarray(values, dtype=np.float64)


@_metric("max abs", "tensor's unit", "lower", "max")
def max_abs(block: Block) -> Floats:
    """Largest absolute difference: what the gate reads."""
    if not block.error.size:
        return _terms(0.0)
    return _terms(np.maximum(block.error.max(), -block.error.min()))


@_metric("rms", "tensor's unit", "lower", "root_ratio")
def rms(block: Block) -> Floats:
    """Root of the mean squared difference."""
    return _terms(block.squares, block.error.size)


@_metric("NMSE", "1", "lower", "ratio")
def nmse(block: Block) -> Floats:
    """Squared difference over squared reference."""
    return _terms(block.squares, _dot(block.expected, block.expected))


@_metric("cosine", "1", "higher", "cosine")
def cosine(block: Block) -> Floats:
    """Cosine of the angle between both tensors taken as vectors."""
    sides = (block.actual, block.expected), (block.actual, block.actual), (block.expected, block.expected)
    return _terms(*(_dot(*pair) for pair in sides))


@_metric("KL", "nats per position", "lower", "ratio", logits_only=True)
def kl(block: Block) -> Floats:
    """Mean over positions of KL(reference || candidate) of the next-token distributions."""
    return _terms(block.divergence.sum(), len(block.expected))


@_metric("max KL", "nats", "lower", "max", logits_only=True)
def kl_max(block: Block) -> Floats:
    """KL(reference || candidate) of the worst position."""
    return _terms(block.divergence.max(initial=0.0))


@_metric("top-1", "share of positions", "higher", "ratio", logits_only=True)
def top1(block: Block) -> Floats:
    """Positions where both choose the same token."""
    return _terms((block.top_expected == block.top_actual).sum(), len(block.expected))


@_metric(f"top-{TOP_K}", "share of tokens", "higher", "ratio", logits_only=True)
def topk(block: Block) -> Floats:
    """Overlap of both sets of the k likeliest tokens."""
    expected, actual = block.top("expected"), block.top("actual")
    return _terms((expected[:, :, None] == actual[:, None, :]).any(axis=2).sum(), expected.size)


METRICS: tuple[Metric, ...] = (max_abs, rms, nmse, cosine, kl, kl_max, top1, topk)


def measure(block: Block, *, logits: bool) -> Totals:
    """Terms of every metric that applies to a block."""
    return {metric.name: metric.terms(block) for metric in METRICS if logits or not metric.logits_only}


def merge(first: Totals, second: Totals) -> Totals:
    """Terms of two sets of blocks together; a metric that only one of them has is kept."""
    merged = {**first, **second}
    for metric in METRICS:
        if metric.name in first and metric.name in second:
            merged[metric.name] = metric.merge(first[metric.name], second[metric.name])
    return merged


def finish(totals: Totals) -> dict[str, float]:
    """Every metric's number, in the order of :data:`METRICS`."""
    return {metric.name: metric.finish(totals[metric.name]) for metric in METRICS if metric.name in totals}
