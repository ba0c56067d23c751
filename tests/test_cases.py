"""The position schedule covers what the design promises, for any window."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvparity.exporter.contract.cases import Case, default_cases, left_padded, seeded_tokens
from kvparity.exporter.contract.spec import DECODE, PREFILL, LayerSpec, ModelSpec, SlotSpec, StateSpec


def model(window: int | None, vocab: int = 64, positions: int = 4096) -> ModelSpec:
    layers = (LayerSpec(0, "full" if window is None else "sliding", window, 0), LayerSpec(1, "full", None, 1))
    return ModelSpec("m", "M", vocab, 8, 2, layers, (), positions, 0, "float32", True, 0, (1,), 2)


@pytest.mark.parametrize("window", [4, 128, 512])
def test_schedule_meets_the_window_every_way(window: int) -> None:
    cases = {case.name: case for case in default_cases(model(window), limit=3 * window + 600)}
    for length in (1, 2, window - 1, window, window + 1, 2 * window + 3):
        assert cases[f"prefill-{length}"].chunks == (length,)
    across = cases["decode-across"]
    assert across.chunks[0] < window < across.total
    assert set(across.chunks[1:]) == {1}
    for length in (window - 1, window, window + 1):
        assert cases[f"handoff-{length}"].chunks[0] == length
        assert cases[f"chunk-{length}"].chunks == (length,) * 3
    assert cases["chunk-1"].chunks[0] == 1
    assert min(cases["chunk-cross"].chunks) > window
    assert cases["decode-only"].first == DECODE
    assert cases["batch-ragged"].batch > 1
    assert max(cases["batch-ragged"].pads) > window


def test_special_tokens_and_both_ends_of_the_vocabulary_are_played() -> None:
    case = next(case for case in default_cases(model(8, vocab=64)) if case.name == "special-tokens")
    assert {0, 1, 2, 62, 63} <= set(case.tokens.ravel().tolist())


def test_a_case_longer_than_the_positions_is_left_out() -> None:
    assert all(case.total <= 40 for case in default_cases(model(128, positions=40)))


def test_the_same_model_gives_the_same_tokens_and_adding_a_case_changes_no_other() -> None:
    first = {case.name: case.tokens for case in default_cases(model(16))}
    second = {case.name: case.tokens for case in default_cases(model(16), text=range(200))}
    assert set(second) - set(first) == {"text", "text-prefill", "text-across", "text-chunks"}
    assert all(np.array_equal(first[name], second[name]) for name in first)


@settings(max_examples=60, deadline=None)
@given(chunks=st.lists(st.integers(1, 9), min_size=1, max_size=6), pad=st.integers(0, 5), rows=st.integers(1, 3))
def test_steps_tile_the_case_and_inputs_agree_with_it(chunks: list[int], pad: int, rows: int) -> None:
    total = sum(chunks)
    pads = tuple(min(pad * row, total - 1) for row in range(rows))
    spec = model(4)
    case = Case("c", left_padded(spec, seeded_tokens(spec, total, 1, rows), pads), tuple(chunks), pads)
    steps = list(case.steps())
    assert [step.start for step in steps] == [sum(chunks[:i]) for i in range(len(chunks))]
    assert steps[-1].stop == total
    assert [step.graph for step in steps] == [PREFILL] + [DECODE] * (len(chunks) - 1)
    ids = np.concatenate([case.inputs(step)["input_ids"] for step in steps], axis=1)
    assert np.array_equal(ids, case.tokens)
    for step in steps:
        inputs = case.inputs(step)
        assert inputs["attention_mask"].shape == (rows, step.stop)
        for row, padding in enumerate(pads):
            assert inputs["attention_mask"][row].sum() == max(step.stop - padding, 0)
            live = [slot for slot in range(step.start, step.stop) if slot >= padding]
            assert inputs["position_ids"][row][[s - step.start for s in live]].tolist() == [s - padding for s in live]


@pytest.mark.parametrize(("chunks", "pads"), [((3,), (0,)), ((4, 0), (0,)), ((4,), (4,)), ((4,), (0, 0))])
def test_a_case_that_does_not_add_up_is_refused(chunks: tuple[int, ...], pads: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="case c"):
        Case("c", np.zeros((1, 4), np.int64), chunks, pads)


def test_no_case_is_longer_than_the_buffers_and_larger_ones_change_nothing() -> None:
    plain = {case.name for case in default_cases(model(8), limit=40)}
    assert {case.name for case in default_cases(model(8), limit=40, rows=64)} == plain
    assert max(case.total for case in default_cases(model(8), rows=30)) == 30


KINDS = (
    "prefill",
    "decode-across",
    "handoff",
    "decode-only",
    "chunk-7",
    "chunk-cross",
    "chunk-empty",
    "batch-ragged",
    "batch-chunks",
    "special-tokens",
    "text-prefill",
    "text-across",
    "text-chunks",
)


@pytest.mark.parametrize(
    ("window", "positions", "limit"),
    [
        (None, 4096, 40),
        (None, 100, None),
        (None, 8, None),
        (8, 4096, 40),
        (128, 4096, 40),
        (128, 4096, 140),
        (1, 64, None),
        (4096, 32768, None),
        (262_144, 131_072, None),
    ],
)
def test_every_kind_of_case_is_there_however_short_the_cases_must_be(
    window: int | None, positions: int, limit: int | None
) -> None:
    cases = {case.name: case for case in default_cases(model(window, positions=positions), range(40_000), limit)}
    longest = min(limit or 16_384, positions)
    assert all(any(name.startswith(kind) for name in cases) for kind in KINDS)
    assert max(case.total for case in cases.values()) <= longest
    assert cases["batch-ragged"].batch > 1
    assert max(cases["batch-ragged"].pads) > 0
    assert any(len(case.chunks) > 1 and min(case.chunks[1:]) > 1 for case in cases.values()) or longest < 9
    if window is not None and window < longest:
        assert sum(case.total > window for case in cases.values()) > 5


def test_masters_are_few_and_every_row_begins_one() -> None:
    from kvparity.exporter.contract.cases import master_of, masters

    cases = default_cases(model(128, positions=1024), range(800))
    known = masters(cases)
    assert len(known) == 5
    assert sum(map(len, known.values())) < 2000
    assert all(master_of(case.row(row), known) for case in cases for row in range(case.batch))
    assert {len(tokens) for tokens in known.values()} >= {1000}


def test_logits_of_one_call_of_a_large_vocabulary_stay_within_two_gigabytes() -> None:
    cases = {case.name: case for case in default_cases(model(512, vocab=262_144), range(4000))}
    ragged = cases["batch-ragged"]
    assert (ragged.batch, ragged.pads) == (2, (3, 512))
    assert max(case.batch * max(case.chunks) * 262_144 * 4 for case in cases.values()) < 2.3e9


def test_models_with_states_are_cut_at_the_edges_of_convolutions_and_chunks() -> None:
    states = (StateSpec("conv_state", (8, 3)), StateSpec("ssm_state", (2, 4, 4), chunk=16))
    kept = replace(model(None), slots=(SlotSpec(0, 0, "recurrent", None, 0, 0, 0, states=states),))
    cases = {case.name: case for case in default_cases(kept, limit=150)}
    lengths = {case.total for case in cases.values() if case.name.startswith("prefill-")}
    assert lengths >= {1, 2, 3, 4, 5, 15, 16, 17, 35}
    assert cases["chunk-2"].chunks == (2, 2, 2)
    assert cases["chunk-17"].chunks == (17, 15, 16, 1)
