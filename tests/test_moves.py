"""Cases with moves are played, judged, recorded and replayed like all others, on a decoder of a few lines of numpy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.cases import Case, Move
from kvparity.exporter.contract.errors import TraceError
from kvparity.exporter.contract.schedule import default_cases
from kvparity.exporter.contract.spec import ExportOptions
from kvparity.exporter.contract.vectors import expected_outputs
from kvparity.exporter.golden import verify
from kvparity.runners.base import RunnerSpec
from kvparity.runners.compare.judge import judge
from kvparity.runners.compare.options import JudgeOptions
from kvparity.runners.decode.play import play
from kvparity.runners.engines.trace_file import TraceSession
from kvparity.runners.report.report import Report
from tests.synthetic import MODEL, WINDOW, Decoder, make_bundle

MOVED = tuple(case.name for case in default_cases(MODEL, limit=40) if case.moves)


@pytest.fixture(scope="module", params=[0, 1, 4])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The moved cases of a bundle that goes back so many tokens; tests must not change it."""
    options = ExportOptions(rewind=request.param)
    cases = tuple(case for case in default_cases(MODEL, limit=40, options=options) if case.moves)
    return make_bundle(tmp_path_factory.mktemp("moves") / "bundle", options=options, cases=cases)


def judged(bundle: Bundle, decoder: Any, **given: Any) -> Report:
    return judge(bundle, JudgeOptions((RunnerSpec("ort"),), **given), opener=lambda *_: decoder)


def wrong(report: Report) -> set[str]:
    return {record.case for record in report.cases if record.verdict != "match"}


def test_moved_cases_match_and_their_calls_come_from_the_file(bundle: Bundle) -> None:
    assert len(MOVED) == 8
    report = judged(bundle, Decoder(options=bundle.options))
    assert report.verdict == "match", report.first_divergence
    assert {record.case for record in report.cases} == set(MOVED)
    assert all(record.played == record.steps for record in report.cases)
    wanted = {case.name: case for case in default_cases(MODEL, limit=40, options=bundle.options)}
    for name in MOVED:
        assert list(bundle.case(name).steps()) == list(wanted[name].steps())
        assert any(entry.moves for entry in bundle.manifest.cases if entry.name == name)


def test_a_cache_that_keeps_one_row_too_few_to_go_back_is_found(bundle: Bundle) -> None:
    """Twin of the test above: a ring one row short."""
    short = replace(bundle.options, rewind=bundle.options.rewind - 1)
    assert {"rewind-edge", "rewind-past", "rewind-rounds"} <= wrong(judged(bundle, Decoder(options=short)))


def test_an_engine_that_mixes_up_the_rows_of_a_batch_is_found(bundle: Bundle) -> None:
    def swapped(graph: str, outputs: dict[str, Any]) -> dict[str, Any]:
        return {name: array[::-1] if name.endswith("1.value") else array for name, array in outputs.items()}

    found = wrong(judged(bundle, Decoder(options=bundle.options, edit=swapped)))
    assert found == {"reorder", "batch-leave", "batch-join"}


def test_a_recording_of_moved_cases_is_replayed(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "trace.npz"
    assert judged(bundle, Decoder(options=bundle.options), save_trace=path).verdict == "match"
    assert judged(bundle, TraceSession(path)).verdict == "match"
    with np.load(path) as archive:
        data = {key: archive[key] for key in archive.files}
    data["resume/step_5/logits"] = data["resume/step_5/logits"] + 1
    np.savez(path, **data)
    assert wrong(judged(bundle, TraceSession(path))) == {"resume"}


@pytest.mark.parametrize("name", MOVED)
def test_every_call_can_be_fed_with_what_was_recorded(bundle: Bundle, name: str) -> None:
    """An error in one call then does not reach the next."""
    vectors, session = bundle.vectors(name), Decoder(options=bundle.options)
    for result in play(bundle, session, vectors.case, caches_from=vectors):
        wanted = expected_outputs(vectors.arrays, result.step, MODEL.slots, bundle.options)
        live = vectors.case.mask[result.step.which, : result.step.stop] == 1
        for output, array in wanted.items():
            assert result.outputs[output].shape == array.shape
            rows = np.moveaxis(np.abs(np.subtract(result.outputs[output], array)), 1 if output == "logits" else 2, 1)
            assert rows[live[:, live.shape[1] - rows.shape[1] :]].max() < 1e-5


def test_rows_that_no_call_kept_are_missed_in_one_line(bundle: Bundle) -> None:
    """Token by token, what falls out of a sliding cache is in no call's caches any more."""
    tokens = np.tile(np.arange(3, 19), (2, 1))
    tokens[1, 12:] += 1
    moves = (Move(0, (0,)), *(Move(slot, (1,)) for slot in range(12, 15)), Move(12, (0,), ((3, 0),)))
    case = Case("c", tokens, (12, 1, 1, 1, 1), (0, 0), moves=moves)
    with pytest.raises(
        TraceError, match=r"case c: step 4 goes back from 15 tokens to 12 of step 3, which kept \d rows"
    ):
        list(play(bundle, Decoder(options=bundle.options), case))
    dropped = replace(case, moves=(*moves[:-1], Move(12, (0,))))
    if bundle.options.rewind >= 3:
        assert len(list(play(bundle, Decoder(options=bundle.options), dropped))) == 5
        return
    with pytest.raises(
        TraceError, match="case c: step 4 goes back from 15 tokens to 12, and sliding caches of window 6"
    ):
        list(play(bundle, Decoder(options=bundle.options), dropped))


def test_each_moved_case_is_an_identity_too(bundle: Bundle) -> None:
    report = judged(bundle, Decoder(options=bundle.options), identities=True, cases=("re*", "batch-*"), tol=1e-5)
    assert report.verdict == "match"
    names = {record.case for record in report.cases}
    assert names >= {"rewind-edge", "rewind-past", "rewind-rounds", "replay", "resume", "batch-leave"}
    assert names >= {"reorder-row-2", "batch-join-row-0", "batch-join-row-2"}

    def late(graph: str, outputs: dict[str, Any]) -> dict[str, Any]:
        if graph == "prefill":
            return outputs
        return {**outputs, "present.0.key": np.roll(outputs["present.0.key"], 1, axis=2)}

    found = judged(bundle, Decoder(options=bundle.options, edit=late), identities=True, cases=("re*",), tol=1e-5)
    assert {"rewind-past", "resume", "replay"} <= wrong(found)
    assert WINDOW < bundle.case("rewind-past").total


@pytest.mark.parametrize(
    ("rows", "mask", "words"),
    [
        (WINDOW - 1, (2, 21), ""),
        (WINDOW + 3, (2, 21), ""),
        (WINDOW - 2, (2, 21), r"past_key_values.0.key has 4 rows after 20 tokens, expected 5 at least"),
        (WINDOW - 1, (2, 1), r"attention_mask is \(2, 1\), expected \(2, 21\), all slots so far"),
        (WINDOW - 1, (1, 21), r"attention_mask is \(1, 21\), expected \(2, 21\)"),
    ],
)
def test_verify_refuses_a_past_that_lacks_rows_and_a_mask_that_lacks_columns(
    rows: int, mask: tuple[int, int], words: str
) -> None:
    slots = [{"slot": 0, "window": WINDOW, "kv_heads": 1}, {"slot": 1, "window": None, "kv_heads": 1}]
    manifest = {"options": {"layout": "dynamic"}, "model": {"slots": slots}}
    step = verify.Step(3, "decode", 20, 21, 20, [0, 1], [])
    feeds = {"input_ids": np.zeros((2, 1), np.int64), "attention_mask": np.ones(mask, np.int64)}
    sizes = {0: rows, 1: 20}
    past = {
        f"past_key_values.{slot}.{part}": np.zeros((2, 1, n, 4))
        for slot, n in sizes.items()
        for part in ("key", "value")
    }
    call = verify.Call(step, "decode", 20, 21, True, feeds)
    if not words:
        verify.check_feeds(manifest, call, past)
        return
    with pytest.raises(verify.CouldNotTellError, match=words):
        verify.check_feeds(manifest, call, past)
