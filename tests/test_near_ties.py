"""Near ties of routing are found, drawn anew where tokens are random, and named where not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the exporter's extra is not installed")

from kvparity.exporter.contract.cases import Case, IntArray, masters  # noqa: E402
from kvparity.exporter.contract.schedule import default_cases  # noqa: E402
from kvparity.exporter.contract.spec import LayerSpec, ModelSpec, SlotSpec  # noqa: E402
from kvparity.runners.reference.ties import Choices, draw_anew, near_ties, watch_choices  # noqa: E402

SPEC = ModelSpec(
    *("t", "T", 96, 8, 2, (LayerSpec(0, "full", None, 0),), (SlotSpec(0, 0, "full", None, 2, 4, 4),)),
    *(64, 0, "float32", True),
)


def scores(margin: float, moved: float) -> tuple[Choices, Choices]:
    """Three tokens that choose 2 of 4; the second's third score is ``margin`` below the second."""
    wide = np.asarray([[0.9, 0.5, 0.1, 0.0], [0.9, 0.5, 0.5 - margin, 0.0], [0.1, 0.2, 0.9, 0.4]])
    return Choices([(2, wide + moved)]), Choices([(2, wide)])


@pytest.mark.parametrize(("margin", "found"), [(1e-3, []), (5e-6, []), (3e-6, [1]), (0.0, [1])])
def test_a_choice_is_near_where_rounding_could_turn_it(margin: float, found: list[int]) -> None:
    assert near_ties(3, *scores(margin, 1e-6)).tolist() == found


def test_choices_of_several_calls_and_layers_are_put_together_by_token() -> None:
    with watch_choices() as seen:
        for tokens in (3, 1):
            for layer in range(2):
                torch.topk(torch.arange(4.0).repeat(1, tokens, 1) + layer, k=2, dim=-1)
            torch.topk(torch.arange(4.0), k=4)  # takes all
    assert [(k, part.shape, part[0, 0]) for k, part in seen.by_token(4)] == [(2, (4, 4), 0.0), (2, (4, 4), 1.0)]


def test_random_tokens_are_drawn_anew_in_every_case_and_others_stay() -> None:
    text = Case("text", np.full((1, 4), 7, np.int64), (4,), (0,))
    cases = (*default_cases(SPEC, limit=40), text)
    bad = {int(tokens[9]) for tokens in masters(cases).values() if len(tokens) > 9} | {7}

    def ties(tokens: IntArray) -> IntArray:
        return np.flatnonzero(np.isin(tokens, list(bad)))

    drawn = draw_anew(SPEC, cases, ties)
    assert any(len(ties(case.tokens.ravel())) for case in cases if case.drawn)
    for before, after in zip(cases, drawn, strict=True):
        rows = [after.row(row) for row in range(after.batch)]
        assert not any(len(ties(row)) for row in rows) or not before.drawn
        assert (replace(after, tokens=before.tokens).name, after.pads) == (before.name, before.pads)
    assert drawn[-1] is text
    assert len(masters(drawn)) == len(masters(cases))


@pytest.mark.slow
def test_cases_without_near_ties_of_a_mixture_in_float16_match(tmp_path: Any) -> None:
    from tests.test_states import exported, judged

    _, bundle = exported("qwen3_next", tmp_path, dtype="float16")
    clean = {case.name for case in bundle.manifest.cases if bundle.manifest.near_tie(case) is None}
    wrong = [record.case for record in judged(bundle).cases if record.verdict != "match" and record.case in clean]
    assert len(clean) > len(bundle.manifest.cases) / 2
    assert not wrong
