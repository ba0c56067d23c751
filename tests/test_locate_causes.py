"""Likely causes: a rule names what the numbers show, and nothing where they show nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from kvparity.exporter.contract.cases import Case, seeded_tokens
from kvparity.runners.locate.causes import Evidence, likely_cause
from kvparity.runners.locate.probe_diff import BLOCKED, Call, diff_probe
from tests.synthetic import MODEL, WINDOW

TOTAL = 2 * WINDOW
RANDOM = np.random.default_rng(11)


def call() -> Call:
    case = Case("c", seeded_tokens(MODEL, TOTAL, 1), (TOTAL,), (0,))
    return Call(case, next(case.steps()), {})


def cause(probe: str, want: Any, got: Any, reference: Mapping[str, Any] | None = None) -> str:
    diff = diff_probe(call(), probe, probe, want, got)
    assert diff is not None
    found = likely_cause(Evidence(MODEL, call(), diff, {probe: want, **(reference or {})}))
    return "" if found is None else found.name


def mask(window: int | None, shift: int = 0) -> Any:
    query, key = np.arange(TOTAL)[:, None], np.arange(TOTAL)[None, :]
    seen = key <= query + shift
    if window is not None:
        seen &= query - key < window
    return np.where(seen, 0.0, BLOCKED)[None, None]


@pytest.mark.parametrize(
    ("got", "name"),
    [
        (mask(WINDOW + 1), "window"),
        (mask(WINDOW - 1), "window"),
        (mask(WINDOW, 1), "causal-off-by-one"),
        (mask(WINDOW, -1), "causal-off-by-one"),
        (mask(None), "masks-swapped"),
        (np.where(mask(WINDOW) < 0, -10.0, 0.0), "mask-weak"),
    ],
)
def test_a_mask_says_what_is_wrong_with_it(got: Any, name: str) -> None:
    if name == "causal-off-by-one" and got[0, 0, 0, 0] < 0:
        got = np.where((mask(WINDOW) == 0) & (got < 0), BLOCKED, mask(WINDOW))
    assert cause("mask.sliding", mask(WINDOW), got, {"mask.full": mask(None)}) == name


def test_numbers_say_factor_neighbour_shift_and_half() -> None:
    want = RANDOM.normal(size=(1, TOTAL, 8))
    assert cause("layers.0.mlp", want, want * 1.5) == "factor"
    other = RANDOM.normal(size=want.shape)
    assert cause("layers.0.per_layer_input", want, other, {"layers.1.per_layer_input": other}) == "other-value"
    assert cause("layers.0.mlp", want, want.astype(np.float16).astype(np.float64)) == "half-precision"
    rows = RANDOM.normal(size=(1, 1, TOTAL, 4))
    assert cause("layers.0.self_attn.key", rows, np.roll(rows, 1, axis=2)) == "cache-shifted"


def test_a_norm_says_epsilon_or_weight() -> None:
    want = RANDOM.normal(size=(1, TOTAL, 8))
    assert cause("layers.0.input_layernorm", want, want * (1 + 1e-5 * RANDOM.random((1, TOTAL, 1)))) == "norm-eps"
    assert cause("layers.0.input_layernorm", want, want * (1 + RANDOM.random(8))) == "norm-weight"


def test_a_value_without_token_slots_gets_no_cause() -> None:
    want = RANDOM.normal(size=(TOTAL, 3 * TOTAL))  # batch and tokens in one axis, as OPT's MLP has them
    assert cause("layers.0.activation_fn", want, want * 1.5) == ""


def test_an_error_without_a_pattern_gets_no_cause() -> None:
    want = RANDOM.normal(size=(1, TOTAL, 8))
    assert cause("layers.0.mlp", want, want + RANDOM.normal(size=want.shape)) == ""


def test_padding_and_shapes_are_not_values() -> None:
    want = RANDOM.normal(size=(1, 1, TOTAL, 4))
    assert cause("layers.0.self_attn.key", want, want[:, :, 1:]) == "cache-rows"
    assert diff_probe(call(), "layers.0.mlp", "v", want[0], want[0] * (1 + 1e-14)) is None
