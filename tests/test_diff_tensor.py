"""The gate: presence, dtype, shape, finiteness, value, in that order; nothing passes by accident."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kvparity.runners.diff import tensor
from kvparity.runners.diff.gate import compare_outputs
from kvparity.runners.diff.tensor import Expectation, compare

LIMIT = 1e-4


def expect(values: Any, **changes: Any) -> Expectation:
    array = np.asarray(values, np.float32)
    axis: Literal[1, 2] = 1 if array.ndim == 3 else 2
    live = np.ones((array.shape[0], array.shape[axis]), bool)
    name = "logits" if axis == 1 else "present.0.key"
    return replace(Expectation(name, array, "float32", live, axis, 0, LIMIT), **changes)


def sample(shape: tuple[int, ...] = (2, 3, 5)) -> Any:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


SHAPES = st.one_of(
    hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=4),
    hnp.array_shapes(min_dims=4, max_dims=4, min_side=1, max_side=4),
)
FINITE = st.floats(-100, 100, width=32)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_the_same_tensor_matches_and_one_changed_element_does_not(data: st.DataObject) -> None:
    values = data.draw(hnp.arrays(np.float32, data.draw(SHAPES), elements=FINITE))
    same = compare(values.copy(), expect(values))
    assert same.matches
    assert same.max_abs == 0
    assert same.compared == values.size
    index = tuple(data.draw(st.integers(0, side - 1)) for side in values.shape)
    wrong = values.copy()
    wrong[index] += data.draw(st.sampled_from([-1.0, 1.0])) * data.draw(st.floats(0.001, 10))
    diff = compare(wrong, expect(values))
    assert diff.reason == "value"
    assert diff.worst is not None
    assert diff.worst.index == index
    assert diff.bad == diff.worst
    assert diff.max_abs == abs(float(wrong[index]) - float(values[index]))


@given(st.data(), st.sampled_from([np.nan, np.inf, -np.inf]))
@settings(max_examples=60, deadline=None)
def test_a_value_that_is_not_finite_never_passes_at_any_tolerance(data: st.DataObject, poison: float) -> None:
    values = data.draw(hnp.arrays(np.float32, data.draw(SHAPES), elements=FINITE))
    index = tuple(data.draw(st.integers(0, side - 1)) for side in values.shape)
    wrong = values.copy()
    wrong[index] = poison
    diff = compare(wrong, expect(values, limit=1e30))
    assert diff.reason == "nonfinite"
    assert diff.needs_tol is None
    assert diff.bad is not None
    assert diff.bad.index == index


@given(SHAPES, SHAPES)
@settings(max_examples=60, deadline=None)
def test_a_shape_never_broadcasts(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    diff = compare(np.zeros(second, np.float32), expect(np.zeros(first)))
    assert diff.matches == (first == second)
    assert diff.reason == (None if first == second else "shape")


@pytest.mark.parametrize("dtype", ["float64", "float16", "int64", "bool"])
def test_another_dtype_is_a_mismatch_even_with_the_same_values(dtype: str) -> None:
    ones = np.ones((1, 2, 3))
    assert compare(ones.astype(np.float32), expect(ones)).matches
    diff = compare(ones.astype(dtype), expect(ones))
    assert diff.reason == "dtype"
    assert dtype in diff.detail


def test_structure_is_judged_in_order() -> None:
    values = sample()
    assert compare(None, expect(values)).reason == "missing"
    assert compare(np.full((9, 9), np.nan), expect(values)).reason == "dtype"
    assert compare(np.full((9, 9), np.nan, np.float32), expect(values)).reason == "shape"
    assert compare(np.full((2, 3, 5), np.nan, np.float32), expect(values)).reason == "nonfinite"
    assert compare(values + 1, expect(values)).reason == "value"


def test_missing_and_extra_outputs_are_mismatches() -> None:
    values = sample()
    both = [expect(values), expect(sample((2, 1, 3, 4)))]
    outputs = {"logits": values, "present.0.key": sample((2, 1, 3, 4))}
    assert all(diff.matches for diff in compare_outputs(outputs, both))
    assert [d.reason for d in compare_outputs({"logits": values}, both)] == [None, "missing"]
    more = compare_outputs({**outputs, "present.1.key": values}, both)
    assert [(d.name, d.reason) for d in more] == [("logits", None), ("present.0.key", None), ("present.1.key", "extra")]


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to compare"):
        compare_outputs({"logits": sample()}, [])


def test_the_limit_is_absolute_and_inclusive() -> None:
    """No hidden relative part: 1e6 and 1e6 + 1 differ by 1."""
    values = np.full((1, 1, 2), 1e6)
    assert compare((values + 1).astype(np.float32), expect(values, limit=1.0)).matches
    assert not compare((values + 1).astype(np.float32), expect(values, limit=0.999)).matches
    assert not compare((values + 1).astype(np.float32), expect(values, limit=float("nan"))).matches


def test_padded_slots_are_checked_for_finiteness_only_and_counted() -> None:
    values = sample((2, 1, 4, 3))
    live = np.asarray([[0, 0, 1, 1], [1, 1, 1, 1]], bool)
    other = values.copy()
    other[0, :, :2] += 50
    diff = compare(other, expect(values, live=live))
    assert diff.matches
    assert diff.padded == 2
    assert diff.compared == values.size - 2 * 3
    assert not compare(other, expect(values)).matches
    other[0, 0, 1, 2] = np.nan
    poisoned = compare(other, expect(values, live=live))
    assert poisoned.reason == "nonfinite"
    assert "on padding" in poisoned.detail


def test_positions_are_token_slots_counted_from_the_first_row() -> None:
    values = sample((1, 2, 4, 3))
    wrong = values.copy()
    wrong[0, 1, 1, 2] += 1
    wrong[0, 0, 3, 0] += 5
    diff = compare(wrong, expect(values, first=100))
    assert diff.bad is not None
    assert diff.worst is not None
    assert (diff.bad.position, diff.bad.index) == (101, (0, 1, 1, 2))
    assert (diff.worst.position, diff.worst.index) == (103, (0, 0, 3, 0))
    assert diff.bad.expected == float(values[0, 1, 1, 2])
    assert diff.bad.actual == float(wrong[0, 1, 1, 2])


def test_infinities_that_the_reference_has_too_match() -> None:
    values = sample()
    values[0, 1, 2] = -np.inf
    assert compare(values.copy(), expect(values)).matches
    flipped = values.copy()
    flipped[0, 1, 2] = np.inf
    assert compare(flipped, expect(values)).reason == "nonfinite"


def test_a_finite_value_where_the_reference_is_not_is_a_mismatch() -> None:
    values = sample()
    values[0, 0, 0] = np.nan
    assert compare(sample(), expect(values)).reason == "value"
    values[0, 0, 0] = np.inf
    assert compare(sample(), expect(values)).reason == "value"


def test_against_float64_the_recorded_difference_counts() -> None:
    values = sample()
    delta = np.full(values.shape, 3e-5, np.float32)
    near = expect(values, delta=delta, float64=True, limit=4e-5)
    assert compare(values.copy(), near).matches
    assert not compare(values - np.float32(2e-5), near).matches
    gate = compare(values.copy(), expect(values, delta=delta, limit=1e-9))
    assert gate.matches
    assert gate.totals64["candidate"][0] == pytest.approx(3e-5)


def test_bitwise_tells_a_signed_zero() -> None:
    zero = np.zeros((1, 2, 3), np.float32)
    assert compare(zero.copy(), expect(zero, bitwise=True, limit=0.0)).matches
    assert compare(-zero, expect(zero, limit=0.0)).matches
    assert compare(-zero, expect(zero, bitwise=True, limit=0.0)).reason == "bits"


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    values = sample((3, 7, 11))
    wrong = values + np.random.default_rng(2).normal(scale=1e-3, size=values.shape).astype(np.float32)
    whole = compare(wrong, expect(values))
    monkeypatch.setattr(tensor, "BLOCK", 13)
    parts = compare(wrong, expect(values))
    assert (whole.max_abs, whole.worst, whole.bad) == (parts.max_abs, parts.worst, parts.bad)
    for name, terms in whole.totals.items():
        assert np.abs(terms - parts.totals[name]).max() <= 1e-12 * np.abs(terms).max()
