"""Metrics: each equals its textbook formula, says which direction is better, and can be summed over blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kvparity.runners.diff.budget import FLOOR_ULPS, Noise, budget_of, floor_of, noise_of, terms64
from kvparity.runners.diff.metrics import METRICS, Block, finish, measure, merge

RANDOM = np.random.default_rng(3)


def block(positions: int = 6, features: int = 40, error: float = 1e-3) -> Block:
    expected = RANDOM.normal(size=(positions, features))
    return Block(expected + error * RANDOM.normal(size=expected.shape), expected)


def softmax(logits: Any) -> Any:
    weights = np.exp(logits)
    return weights / weights.sum(axis=1, keepdims=True)


def test_each_metric_is_its_formula() -> None:
    pair = block(error=0.3)
    actual, expected = pair.actual, pair.expected
    found = finish(measure(pair, logits=True))
    p, q = softmax(expected), softmax(actual)
    divergence = (p * np.log(p / q)).sum(axis=1)
    formulas = {
        "max_abs": np.abs(actual - expected).max(),
        "rms": np.sqrt(((actual - expected) ** 2).mean()),
        "nmse": ((actual - expected) ** 2).sum() / (expected**2).sum(),
        "cosine": (actual * expected).sum() / np.linalg.norm(actual) / np.linalg.norm(expected),
        "kl": divergence.mean(),
        "kl_max": divergence.max(),
        "top1": (actual.argmax(axis=1) == expected.argmax(axis=1)).mean(),
        "topk": np.mean(
            [len(set(np.argsort(-a)[:5]) & set(np.argsort(-e)[:5])) / 5 for a, e in zip(actual, expected, strict=True)]
        ),
    }
    assert list(found) == [metric.name for metric in METRICS]
    assert found == pytest.approx(formulas, rel=1e-12)


def test_sums_over_blocks_are_the_whole() -> None:
    pair = block()
    halves = [Block(pair.actual[part], pair.expected[part]) for part in (slice(0, 2), slice(2, 6))]
    merged = merge(measure(halves[0], logits=True), measure(halves[1], logits=True))
    assert finish(merged) == pytest.approx(finish(measure(pair, logits=True)), rel=1e-12)


def test_the_direction_is_declared_and_true() -> None:
    near, far = (finish(measure(block(40, 40, error), logits=True)) for error in (1e-4, 1.0))
    for metric in METRICS:
        better, worse = (near, far) if metric.better == "lower" else (far, near)
        assert better[metric.name] < worse[metric.name], metric.name


def test_equal_tensors_are_perfect_in_every_metric() -> None:
    same = Block(np.ones((2, 3)), np.ones((2, 3)))
    found = finish(measure(same, logits=True))
    assert all(found[metric.name] == (0 if metric.better == "lower" else pytest.approx(1)) for metric in METRICS)


def test_caches_have_no_token_metrics() -> None:
    assert set(finish(measure(block(), logits=False))) == {m.name for m in METRICS if not m.logits_only}


def test_the_floor_is_ulps_of_the_largest_value() -> None:
    for value in (1.0, 1.5, 100.0, 3e-5):
        assert floor_of(value, "float32") == FLOOR_ULPS * float(np.spacing(np.float32(value)))
    assert floor_of(1.0, "float16") == FLOOR_ULPS * float(np.spacing(np.float16(1.0)))
    assert floor_of(0.0, "float32") == 0


def test_the_budget_is_the_ratio_of_errors_and_never_divides_by_less_than_the_floor() -> None:
    totals = {"candidate": terms64(np.asarray([[4e-5, 0.0]])), "reference": terms64(np.asarray([[1e-5, 1e-5]]))}
    budget = budget_of(totals, Noise(1e-5, 1e-9))
    assert budget is not None
    assert budget.ratio_max == pytest.approx(4)
    assert budget.ratio_rms == pytest.approx(4 / np.sqrt(2))
    exact = {"candidate": terms64(np.asarray([[1e-7]])), "reference": terms64(np.asarray([[0.0]]))}
    floored = budget_of(exact, Noise(0.0, 5e-7))
    assert floored is not None
    assert floored.ratio_max == pytest.approx(0.2)


def test_noise_leaves_padding_out() -> None:
    values, delta = np.ones((1, 3, 2), np.float32), np.full((1, 3, 2), 1e-6, np.float32)
    delta[0, 0], values[0, 0] = 1.0, 1e9
    noise = noise_of(values, delta, np.asarray([[False, True, True]]), "float32")
    assert noise.largest == np.float32(1e-6)
    assert noise.floor == floor_of(1.0, "float32")
