"""The position schedule covers what the design promises, for any window."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvparity.exporter.contract.cases import Case, Move, left_padded, seeded_tokens
from kvparity.exporter.contract.schedule import default_cases
from kvparity.exporter.contract.spec import DECODE, PREFILL, ExportOptions, LayerSpec, ModelSpec, SlotSpec, StateSpec


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
    assert {
        case.name for case in default_cases(model(8), limit=40, options=ExportOptions(layout="static", max_len=64))
    } == plain
    assert max(case.total for case in default_cases(model(8), options=ExportOptions(layout="static", max_len=30))) == 30


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
    "rewind-edge",
    "rewind-past",
    "rewind-rounds",
    "replay",
    "resume",
    "reorder",
    "batch-leave",
    "batch-join",
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
    kinds = KINDS if window != 1 else KINDS[: KINDS.index("rewind-edge")]  # no row is kept that a call could go back to
    assert all(any(name.startswith(kind) for name in cases) for kind in kinds)
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


MOVED = KINDS[-8:]


@pytest.mark.parametrize("rewind", [0, 2, 4])
@pytest.mark.parametrize("window", [None, 8, 128])
def test_every_number_of_drafted_tokens_is_taken_back_as_far_as_caches_reach(window: int | None, rewind: int) -> None:
    cached = replace(model(window), slots=(SlotSpec(0, 0, "sliding" if window else "full", window, 1, 4, 4),))
    cases = {case.name: case for case in default_cases(cached, limit=400, options=ExportOptions(rewind=rewind))}
    for name in ("rewind-edge", "rewind-past"):
        steps = list(cases[name].steps())
        back = {before.stop - step.start for before, step in pairwise(steps) if before.rows == (1,)}
        assert back == {0, 1, 2, 3, 4}
        dropped = {step.reached - step.start for step in steps if step.reached and step.tokens == 1}
        assert dropped >= set(range(1, 5 if window is None else rewind + 1))
        spliced = [step for before, step in pairwise(steps) if step.past == ((before.index, 0),)]
        assert bool(spliced) == (window is not None and rewind < 4)
    if window is not None:
        assert cases["rewind-edge"].total > window - 1
        assert next(cases["rewind-past"].steps()).stop > window


def test_rejected_tokens_and_other_beams_cost_no_sequence_of_their_own() -> None:
    from kvparity.exporter.contract.cases import masters

    cases = default_cases(model(128, positions=1024), range(800))
    plain = [case for case in cases if not case.moves]
    assert {case.name for case in cases if case.moves} == set(MOVED)
    assert {len(tokens) for tokens in masters(cases).values()} == {len(tokens) for tokens in masters(plain).values()}


def test_models_with_states_replay_and_never_drop_rows() -> None:
    states = (StateSpec("conv_state", (8, 3)), StateSpec("ssm_state", (2, 4, 4), chunk=16))
    kept = replace(model(None), slots=(SlotSpec(0, 0, "recurrent", None, 0, 0, 0, states=states),))
    cases = [case for case in default_cases(kept, limit=150) if case.moves]
    assert {case.name for case in cases} == {name for name in MOVED if not name.startswith("rewind")}
    assert not any(step.reached for case in cases for step in case.steps())
    for case in cases:
        steps = list(case.steps())
        for step in (step for step in steps if step.start):
            for (call, row), own in zip(case.sources(step), step.rows, strict=True):
                assert steps[call].stop - case.pads[row] == step.start - case.pads[own]


TOKENS = np.asarray([[5, 6, 7, 8, 9, 9], [5, 6, 1, 2, 3, 4], [0, 0, 5, 6, 7, 8]])
PREFILLED, DRAFTED = Move(0, (0,)), Move(2, (1,))


@pytest.mark.parametrize(
    ("chunks", "moves"),
    [
        ((2,), (PREFILLED, DRAFTED)),  # as many moves as calls
        ((2, 2), (PREFILLED, Move(2, ()))),  # a call of no row
        ((2, 2), (PREFILLED, Move(2, (3,)))),  # no such row
        ((2, 5), (PREFILLED, Move(2, (0,)))),  # past the end
        ((2, 2), (PREFILLED, Move(3, (0,)))),  # further than the caches
        ((3, 2), (PREFILLED, Move(3, (1,)))),  # other tokens than the caches hold
        ((2, 2), (PREFILLED, Move(2, (0,), ((1, 0),)))),  # a call that is not before it
        ((2, 2), (PREFILLED, Move(2, (0,), ((0, 1),)))),  # no such row of that call
        ((2, 2), (PREFILLED, Move(2, (0, 1)))),  # another batch than the caches in hand
        ((2, 2), (PREFILLED, Move(4, (2,)))),  # other slots than the caches in hand
        ((2, 2), (PREFILLED, Move(0, (0,), ((0, 0),)))),  # nothing comes before slot 0
    ],
)
def test_a_call_that_does_not_continue_what_it_names_is_refused(
    chunks: tuple[int, ...], moves: tuple[Move, ...]
) -> None:
    fine = Case(
        "c", TOKENS, (3, 2, 1, 1), (0, 0, 2), moves=(PREFILLED, DRAFTED, Move(2, (0,)), Move(4, (2,), ((0, 0),)))
    )
    assert [(step.start, step.reached, step.graph) for step in fine.steps()] == [
        (0, 0, PREFILL),
        (2, 3, DECODE),
        (2, 4, DECODE),
        (4, 0, DECODE),
    ]
    assert fine.sources(list(fine.steps())[3]) == [(0, 0)]
    assert [fine.ends(row) for row in range(3)] == [{3, 4}, {3, 4}, {3}]
    with pytest.raises(ValueError, match="case c: "):
        Case("c", TOKENS, chunks, (0, 0, 2), moves=moves)
