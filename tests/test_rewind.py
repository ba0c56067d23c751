"""Going back: rejected tokens are dropped from the caches, and what follows is what PyTorch computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.cases import Case, Step
from kvparity.exporter.contract.errors import BundleError, ExportError, TraceError
from kvparity.exporter.contract.ports import resolve_options
from kvparity.exporter.contract.spec import DECODE, PREFILL, ExportOptions, StateSpec
from kvparity.runners.base import RunnerSpec, Session
from kvparity.runners.decode import draft
from kvparity.runners.decode.decoders import PlayedDecoder, open_decoder
from kvparity.runners.decode.generate import Sampling, generate_tokens
from kvparity.runners.decode.play import open_player, play
from kvparity.runners.isolation.process import open_runner
from tests.mutants.subject import WINDOW
from tests.synthetic import MODEL

DRAFT = 4
PLACES = (3, WINDOW - 3, WINDOW - 1, WINDOW, WINDOW + 1, WINDOW + 3, 2 * WINDOW, 5 * WINDOW)
FORMS: dict[str, dict[str, Any]] = {
    "dynamic": {},
    "bare": {"profile": "bare"},
    "modern": {"profile": "modern"},
    "ort": {"profile": "ort"},
    "static": {"layout": "static", "max_len": 64, "chunk": 4},
    "static-modern": {"layout": "static", "max_len": 64, "chunk": 4, "profile": "modern"},
    "shared": {"layout": "shared", "profile": "ort"},
}
QUICK = ("dynamic", "shared")  # the others are slow
Make = Callable[[str, int], Bundle]


@pytest.fixture(scope="module")
def make(subject: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Bundles of the toy model by form and rewind, without vectors."""
    from kvparity.exporter.checkpoint.source import resolve
    from kvparity.exporter.export import export

    @cache
    def made(form: str, rewind: int) -> Bundle:
        target = tmp_path_factory.mktemp(form) / "bundle"
        return export(
            resolve(str(Path(subject.root).parent / "hf")), target, ExportOptions(**FORMS[form], rewind=rewind)
        )

    return made


def tokens_of(bundle: Bundle, count: int) -> np.ndarray:
    return np.random.default_rng(11).integers(3, bundle.model.vocab_size, count)


@pytest.fixture(scope="module")
def truth(subject: Bundle) -> np.ndarray:
    """Float64 logits of the text in one prefill, by the bundle that cannot go back."""
    ids = tokens_of(subject, 5 * WINDOW + 16)
    session = open_runner(subject, RunnerSpec("exact"))
    case = Case("truth", ids[None], (len(ids),), (0,))
    return np.asarray(next(play(subject, session, case)).outputs["logits"][0])


def inputs_of(ids: Any, start: int) -> dict[str, Any]:
    total = start + len(ids)
    return {
        "input_ids": np.asarray(ids, np.int64)[None],
        "attention_mask": np.ones((1, total), np.int64),
        "position_ids": np.arange(start, total)[None],
    }


def gone_back(bundle: Bundle, session: Session, at: int, accepted: int, wanted: Any) -> float:
    """Largest difference after ``DRAFT`` tokens at a place of which some are taken back, twice, then others follow."""
    ids, player = tokens_of(bundle, len(wanted)), open_player(bundle, session)
    player.run(session, Step(0, PREFILL, 0, at), inputs_of(ids[:at], 0))
    worst, reached = 0.0, at
    for index, tokens in enumerate((DRAFT, DRAFT, 1, 2, 1), start=1):
        draft = ids[at : at + tokens].copy()
        good = min(accepted, tokens) if tokens == DRAFT else tokens
        draft[good:] = (draft[good:] + 7) % bundle.model.vocab_size
        step = Step(index, DECODE, at, at + tokens, reached)
        found, reached = player.run(session, step, inputs_of(draft, at))["logits"][0], step.peak
        difference = np.abs(found[:good].astype(np.float64) - wanted[at : at + good])
        worst = max(worst, float(np.nan_to_num(difference, nan=np.inf).max(initial=0.0)))
        at += good
    return worst


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_rejected_tokens_leave_no_trace_in_float64(make: Make, truth: Any, form: str) -> None:
    bundle = make(form, DRAFT)
    assert bundle.options.rewind == DRAFT
    session = open_runner(bundle, RunnerSpec("exact"))
    found = {(at, m): gone_back(bundle, session, at, m, truth) for at in (WINDOW + 1, 2 * WINDOW) for m in (0, 3)}
    assert max(found.values()) < 1e-10, found


@pytest.mark.parametrize("form", [pytest.param(f, marks=[] if f in QUICK else [pytest.mark.slow]) for f in FORMS])
def test_rejected_tokens_leave_no_trace_in_onnx_runtime(make: Make, truth: Any, form: str) -> None:
    bundle = make(form, DRAFT)
    session = open_runner(bundle, RunnerSpec("ort"))
    found = {(at, m): gone_back(bundle, session, at, m, truth) for at in PLACES for m in range(DRAFT + 1)}
    plain = max(found[at, DRAFT] for at in PLACES)  # every token accepted: rounding alone
    assert plain < 1e-4
    assert max(found.values()) <= 2 * plain, found


@pytest.mark.parametrize("form", ["dynamic", "static", "shared"])
def test_going_back_further_than_the_caches_reach_is_refused(make: Make, truth: Any, form: str) -> None:
    session = open_runner(make(form, 0), RunnerSpec("ort"))
    assert gone_back(make(form, 0), session, 3, 4, truth) < 1e-4
    with pytest.raises(TraceError, match=r"goes back from 20 tokens to 17, .* export with --rewind 3, or keep"):
        gone_back(make(form, 0), session, 2 * WINDOW, 1, truth)


class Guesser:
    """Drafts of the right tokens with a wrong one in every place in turn."""

    def __init__(self, prompt: list[int], plain: list[int]) -> None:
        self.text, self._known, self._calls = list[int](), [*prompt, *plain], 0

    def add(self, token: int) -> None:
        self.text.append(token)

    def draft(self, count: int) -> list[int]:
        guess = self._known[len(self.text) : len(self.text) + count]
        self._calls += 1
        place = self._calls % (DRAFT + 1)
        return [*guess[:place], *[(token + 1) % 96 for token in guess[place : place + 1]], *guess[place + 1 :]]


DRAFTED = [("dynamic", 0), ("dynamic", 2), ("shared", 0), ("shared", 4)]
SLOW_DRAFTED = [("dynamic", 4), ("static", 0), ("static", 4), ("shared", 1), ("bare", 2)]


@pytest.mark.parametrize(
    ("form", "rewind"), [*DRAFTED, *(pytest.param(*which, marks=pytest.mark.slow) for which in SLOW_DRAFTED)]
)
def test_drafts_change_no_token(make: Make, monkeypatch: pytest.MonkeyPatch, form: str, rewind: int) -> None:
    bundle, ort = make(form, rewind), RunnerSpec("ort", {"threads": "1"})
    prompt = tokens_of(bundle, WINDOW - 3)
    plain = list(generate_tokens(bundle, open_decoder(bundle, ort), prompt, 40, Sampling()))
    assert len(plain) > 3 * WINDOW
    monkeypatch.setattr(draft, "_Lookup", lambda: Guesser(prompt.tolist(), plain))
    for decoder in (open_decoder(bundle, ort), PlayedDecoder(bundle, open_runner(bundle, ort))):
        for _ in range(2):  # a conversation leaves nothing to the next
            decoder.reset()
            drafts = draft.Drafts()
            found = list(generate_tokens(bundle, decoder, prompt, 40, Sampling(), DRAFT, drafts))
            assert found == plain
            assert 0 < drafts.accepted < drafts.drafted
            assert drafts.calls < len(plain)


def test_a_lookup_drafts_what_followed_the_same_tokens_before() -> None:
    lookup = draft._Lookup()
    for token in (5, 6, 7, 8, 1, 6, 7):
        lookup.add(token)
    assert lookup.draft(4) == [8, 1, 6, 7]
    assert lookup.draft(1) == [8]
    lookup.add(9)
    assert lookup.draft(4) == []
    for token in (5, 6, 7):
        lookup.add(token)
    assert lookup.draft(2) == [8, 1]  # three tokens the same go before two


def test_what_cannot_be_drafted_for_is_refused_in_one_line(make: Make) -> None:
    bundle = make("dynamic", 0)
    with pytest.raises(BundleError, match="--draft is greedy decoding; leave out --temperature"):
        draft.check_draft(bundle, Sampling(temperature=0.7))
    manifest = bundle.manifest
    for changed, words in (
        (replace(manifest, options=replace(bundle.options, logits="last")), "last position's logits alone"),
        (replace(manifest, model=replace(bundle.model, rope_switch=32)), "rotary frequencies depend on how calls"),
    ):
        with pytest.raises(BundleError, match=words):
            draft.check_draft(replace(bundle, manifest=changed), Sampling())


def test_options_that_cannot_go_back_are_refused() -> None:
    states = (StateSpec("conv_state", (8, 3)),)
    model = replace(MODEL, slots=(replace(MODEL.slots[0], states=states), MODEL.slots[1]))
    with pytest.raises(ExportError, match=r"--rewind 2: synthetic keeps states, .* replay the accepted tokens"):
        resolve_options(ExportOptions(rewind=2), model)
    for count in (-1, MODEL.max_position):
        with pytest.raises(ExportError, match=f"--rewind {count}: expected 0 to 63 tokens"):
            resolve_options(ExportOptions(rewind=count), MODEL)


def test_rows_held_follow_from_one_number() -> None:
    slot = replace(MODEL.slots[0], window=6)
    options = ExportOptions(rewind=3)
    assert [options.kept_rows(slot, total) for total in (0, 7, 8, 9, 50)] == [0, 7, 8, 8, 8]
    assert options.kept_rows(slot, 47, peak=50) == 5  # what the next token sees, and no more
    assert options.kept_rows(slot, 40, peak=50) == 0
    assert replace(options, sliding_cache="full").kept_rows(slot, 40, peak=50) == 40
    assert options.ring(slot) is None
    assert replace(options, layout="shared").ring(slot) == 9
    assert [replace(options, layout="static", max_len=n).ring(slot) for n in (9, 10)] == [None, 9]
    assert [replace(options, layout="static", max_len=n).capacity(slot) for n in (9, 10)] == [9, 9]
