"""One output against what it should be: presence, dtype, shape, finiteness, value, in that order.

The comparison is ``|actual - expected| <= limit`` in float64 and nothing else: no relative part, no broadcasting, and
a NaN fails because it is not ``<=`` anything. Slots that hold padding are checked for finiteness only: their values
are nobody's contract (transformers' eager attention gives a padded query uniform weights), but a NaN there reaches
live slots through the caches of the next call.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, cast

import numpy as np
import numpy.typing as npt

from kvparity.runners.diff.budget import add64, terms64
from kvparity.runners.diff.metrics import Block, Floats, Totals, measure, merge
from kvparity.runners.diff.names import Axis

__all__ = ["Bools", "Expectation", "Place", "Reason", "TensorDiff", "compare"]

Array = npt.NDArray[np.generic]
Bools = npt.NDArray[np.bool_]
_Places = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
Reason = Literal["missing", "extra", "dtype", "shape", "nonfinite", "value", "bits"]
BLOCK = 1 << 21  # elements held in float64 at once: 16 MB per temporary


@dataclass(frozen=True, eq=False)
class Expectation:
    """What one output of one call must be.

    Attributes:
        name: Output name.
        values: The reference; (batch, rows, vocab) where ``axis`` is 1, (batch, kv_heads, rows, head_dim) or
            (batch, channels, rows) where 2, (batch, …) where 0.
        dtype: dtype name that the output must have; the reference may be held in another one.
        live: (batch, rows): False where a row is padding.
        axis: Which axis counts rows, that is token slots; 0 for a state, which counts as one row.
        first: Token slot of row 0.
        limit: Largest difference that passes.
        delta: The float64 reference minus ``values``, where it is known.
        float64: Judge against the float64 reference instead of ``values``.
        known: (batch, rows): False where the reference of a row was not recorded; None where all were.
        noise: (batch, rows, 3): the reference's own float32 error in each row, where ``values`` are the float64
            reference themselves: largest, sum of squares, and largest magnitude; None elsewhere.
        bitwise: Require the same bytes as well.
    """

    name: str
    values: Array
    dtype: str
    live: Bools
    axis: Axis
    first: int
    limit: float
    delta: Array | None = None
    float64: bool = False
    bitwise: bool = False
    known: Bools | None = None
    noise: Floats | None = None

    @property
    def judged(self) -> Bools:
        """(batch, rows): rows whose values are compared."""
        return self.live if self.known is None else self.live & self.known


@dataclass(frozen=True)
class Place:
    """One element of a tensor.

    Attributes:
        batch: Batch row.
        position: Token slot.
        index: Index in the tensor as the engine returned it.
        expected: Value of the reference there.
        actual: Value of the candidate there.
    """

    batch: int
    position: int
    index: tuple[int, ...]
    expected: float
    actual: float


@dataclass(frozen=True, eq=False)
class TensorDiff:
    """What comparing one output found.

    Attributes:
        name: Output name.
        reason: Why it is a mismatch; None where it matches.
        detail: The fault in words, for faults that are not a value.
        limit: Largest difference that passes.
        max_abs: Largest difference over live slots; None where values could not be compared.
        worst: Where it is; for a non-finite value, where the first one is.
        bad: First element over the limit, by token slot.
        compared: Elements compared.
        padded: Slots left out of the value comparison because they are padding, over the batch.
        rows: Rows whose values were compared, and how many there are that are no padding.
        first: Token slot of row 0.
        errors: (batch, rows) largest difference per slot, NaN on padding; None where values were not compared.
        errors64: The same against the float64 reference; None where there is none.
        noise: The same for the reference's own float32 rounding; None where there is none.
        flipped: (batch, rows) of logits: where the likeliest token differs; None elsewhere.
        totals: Terms of every metric.
        totals64: Sums of squares and maxima against float64: ``candidate`` and ``reference``, (max, squares, count).
    """

    name: str
    limit: float
    reason: Reason | None = None
    detail: str = ""
    max_abs: float | None = None
    worst: Place | None = None
    bad: Place | None = None
    compared: int = 0
    padded: int = 0
    rows: tuple[int, int] = (0, 0)
    first: int = 0
    errors: Floats | None = None
    errors64: Floats | None = None
    noise: Floats | None = None
    flipped: Bools | None = None
    totals: Totals = field(default_factory=dict)
    totals64: Totals = field(default_factory=dict)

    @property
    def matches(self) -> bool:
        """Whether the output passes."""
        return self.reason is None

    @property
    def needs_tol(self) -> float | None:
        """Smallest tolerance that would pass; None where none would."""
        return self.max_abs if self.reason in (None, "value") else None


def compare(actual: Array | None, expectation: Expectation) -> TensorDiff:
    """Compare one output.

    Args:
        actual: What the candidate returned; None where it returned nothing of that name.
        expectation: What it must be.
    """
    fault = _structure(actual, expectation)
    if fault is not None or actual is None:
        return fault or TensorDiff(expectation.name, expectation.limit)
    rows = _Rows(actual, expectation)
    with np.errstate(invalid="ignore", over="ignore"):  # a reference may hold Inf; Inf - Inf is NaN and fails
        diff = _finiteness(rows) or _values(rows)
    if diff.matches and expectation.bitwise and not _same_bits(actual, expectation.values):
        return replace(
            diff, reason="bits", detail="equal in value, but not bit for bit (a signed zero or a NaN payload)"
        )
    return diff


def _structure(actual: Array | None, expectation: Expectation) -> TensorDiff | None:
    """Presence, dtype, shape."""
    name, limit, expected = expectation.name, expectation.limit, expectation.values
    if actual is None:
        return TensorDiff(name, limit, "missing", f"missing; expected {expectation.dtype} {list(expected.shape)}")
    if actual.dtype.name != expectation.dtype:
        return TensorDiff(name, limit, "dtype", f"dtype {actual.dtype.name}, expected {expectation.dtype}")
    if actual.shape != expected.shape:
        return TensorDiff(name, limit, "shape", f"shape {list(actual.shape)}, expected {list(expected.shape)}")
    return None


class _Rows:
    """Both tensors seen as (batch, rows, features), and the way back to an index of the engine's tensor."""

    def __init__(self, actual: Array, expectation: Expectation) -> None:
        self.expectation = expectation
        self.actual = _by_row(actual, expectation.axis)
        self.expected = _by_row(expectation.values, expectation.axis)
        self.delta = None if expectation.delta is None else _by_row(expectation.delta, expectation.axis)
        batch, self.rows = self.actual.shape[:2]
        self.shape = (batch, self.rows)
        self.inner = self.actual.shape[2:]
        if expectation.live.shape != self.shape:
            raise ValueError(f"{expectation.name}: mask of shape {expectation.live.shape}, expected {self.shape}")

    def place(self, batch: int, row: int, feature: int, expected: float) -> Place:
        inner = tuple(int(i) for i in np.unravel_index(feature, self.inner))
        axis = self.expectation.axis
        index = (batch, *inner[: axis - 1], row, *inner[axis - 1 :]) if axis else (batch, *inner)
        actual = float(self.actual[(batch, row, *inner)])
        return Place(batch, max(self.expectation.first + row, 0), index, expected, actual)

    def blocks(self) -> Iterator[_Places]:
        """Batch and row numbers of slots that are judged, few enough at a time."""
        batches, rows = np.nonzero(self.expectation.judged)
        step = max(BLOCK // max(int(np.prod(self.inner)), 1), 1)
        for start in range(0, len(rows), step):
            yield batches[start : start + step], rows[start : start + step]


def _by_row(array: Array, axis: Axis) -> Array:
    if axis == 1:
        return array  # logits may be rebuilt where they are looked at, and no numpy array yet
    return np.moveaxis(array, axis, 1) if axis else array[:, None]


def _take(array: Array, batches: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> Floats:
    """(slots, features) in float64."""
    picked = array[batches, rows].astype(np.float64)
    return cast(Floats, picked.reshape(len(rows), -1))


def _finiteness(rows: _Rows) -> TensorDiff | None:
    """A mismatch at the first slot where the candidate is not finite and the reference is not the same there."""
    expectation = rows.expectation
    if _all_finite(rows.actual):
        return None
    axes = tuple(range(2, rows.actual.ndim))
    batches, row_numbers = np.nonzero(~np.isfinite(rows.actual).all(axis=axes))
    actual = _take(rows.actual, batches, row_numbers)
    expected = _take(rows.expected, batches, row_numbers)
    same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
    bad = ~np.isfinite(actual) & ~same
    if not bad.any():
        return None
    slots = np.nonzero(bad.any(axis=1))[0]
    slot = slots[np.argmin(row_numbers[slots], axis=0)]
    feature = int(bad[slot].argmax())
    batch, row = int(batches[slot]), int(row_numbers[slot])
    place = rows.place(batch, row, feature, float(expected[slot, feature]))
    padding = "" if expectation.live[batch, row] else ", on padding"
    detail = f"{int(bad.sum())} of {rows.actual.size} values are NaN or Inf where the reference is not{padding}"
    padded = int((~expectation.live).sum())
    return TensorDiff(
        expectation.name,
        expectation.limit,
        "nonfinite",
        detail,
        worst=place,
        bad=place,
        compared=int(rows.actual.size),
        padded=padded,
        first=expectation.first,
    )


def _all_finite(array: Array) -> bool:
    parts = (part for batch in array for part in (batch if batch.size > BLOCK else [batch]))
    return all(bool(np.isfinite(part).all()) for part in parts)


def _values(rows: _Rows) -> TensorDiff:
    """Differences of the rows that are judged."""
    expectation = rows.expectation
    has64 = rows.delta is not None or expectation.noise is not None
    errors = np.full(rows.shape, np.nan)
    errors64, noise = (errors.copy(), errors.copy()) if has64 else (None, None)
    flipped = np.zeros(rows.shape, bool) if expectation.axis == 1 else None
    totals: Totals = {}
    totals64: Totals = {}
    compared = 0
    for places in rows.blocks():
        block = Block(*_aligned(rows, *places))
        if errors64 is not None and noise is not None:
            candidate, own = _against64(rows, places, block, noise)
            errors64[places] = _largest(candidate)
            totals64 = add64(totals64, {"candidate": terms64(candidate), "reference": own})
            if expectation.float64 and rows.delta is not None:
                block = Block(block.actual, block.actual - candidate)
        errors[places] = _largest(block.error)
        totals = merge(totals, measure(block, logits=expectation.axis == 1))
        compared += block.error.size
        if flipped is not None:
            flipped[places] = block.top_expected != block.top_actual
    base = TensorDiff(
        expectation.name,
        expectation.limit,
        compared=compared,
        padded=int((~expectation.live).sum()),
        rows=(int(expectation.judged.sum()), int(expectation.live.sum())),
        first=expectation.first,
        errors64=errors64,
        noise=noise,
        flipped=flipped,
        totals=totals,
        totals64=totals64,
    )
    return _judge(rows, base, errors) if compared else base


def _largest(error: Floats) -> Floats:
    """(positions,): largest magnitude."""
    if not error.size:
        return np.zeros(len(error))
    return np.maximum(error.max(axis=1), -error.min(axis=1))


def _against64(rows: _Rows, places: _Places, block: Block, noise: Floats) -> tuple[Floats, Floats]:
    """The candidate's error against float64, and the terms of the reference's own, whose largest goes to ``noise``."""
    if rows.delta is None:
        assert rows.expectation.noise is not None
        own = rows.expectation.noise[places]
        noise[places] = own[:, 0]
        return block.error, np.asarray([own[:, 0].max(initial=0.0), own[:, 1].sum(), block.error.size])
    delta = _take(rows.delta, *places)
    noise[places] = np.abs(delta).max(axis=1, initial=0.0)
    return block.error - delta, terms64(delta)


def _aligned(rows: _Rows, batches: npt.NDArray[np.int64], row_numbers: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Both sides; where they agree on a value that is not finite, both are 0."""
    actual = _take(rows.actual, batches, row_numbers)
    expected = _take(rows.expected, batches, row_numbers)
    if not np.isfinite(actual).all():
        agreed = ~np.isfinite(actual)
        actual, expected = np.where(agreed, 0.0, actual), np.where(agreed, 0.0, expected)
    return actual, expected


def _judge(rows: _Rows, base: TensorDiff, errors: Floats) -> TensorDiff:
    """Worst and first bad slot, and the verdict; ``not (error <= limit)`` so that NaN is bad."""
    expectation = rows.expectation
    live = expectation.judged
    bad = ~(errors <= expectation.limit) & live
    largest = np.where(live, np.nan_to_num(errors, nan=np.inf), -1.0)
    batch, row = (int(i) for i in np.unravel_index(int(largest.argmax()), largest.shape))
    worst = _place_in_row(rows, batch, row)
    first_bad: Place | None = None
    if bad.any():
        first_row = int(bad.any(axis=0).argmax())
        first_bad = _place_in_row(rows, int(bad[:, first_row].argmax()), first_row)
    return replace(
        base,
        reason="value" if first_bad is not None else None,
        max_abs=float(errors[batch, row]),
        worst=worst,
        bad=first_bad,
        errors=errors,
    )


def _place_in_row(rows: _Rows, batch: int, row: int) -> Place:
    """The element of one slot that differs most."""
    one = (np.asarray([batch]), np.asarray([row]))
    actual, expected = _aligned(rows, *one)
    if rows.expectation.float64 and rows.delta is not None:
        expected = expected + _take(rows.delta, *one)
    error = np.abs(actual - expected)[0]
    feature = int(np.nan_to_num(error, nan=np.inf).argmax())
    return rows.place(batch, row, feature, float(expected[0, feature]))


def _same_bits(actual: Array, expected: Array) -> bool:
    return actual.dtype == expected.dtype and actual.tobytes() == expected.tobytes()
