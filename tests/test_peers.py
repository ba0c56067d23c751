"""Engine against engine, bundle against bundle: for people whose truth is not PyTorch."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cli
import kvparity
from kvparity.exporter.contract.bundle import Bundle, write_manifest
from kvparity.exporter.contract.spec import ExportOptions
from tests.synthetic import Decoder, make_bundle

CASES = ("prefill-7", "handoff-6", "batch-ragged")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("peers") / "bundle")


@pytest.fixture(scope="module")
def recording(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an engine gives that is wrong past the window: the truth, for who says so."""
    path = tmp_path_factory.mktemp("saved") / "theirs.npz"
    kvparity.compare(bundle, lambda _bundle: Decoder(window_shift=1), cases=CASES, save_trace=path)
    return path


def own(opened: Bundle) -> Decoder:
    return Decoder(options=opened.options)


def shifted(opened: Bundle) -> Decoder:
    return Decoder(options=opened.options, window_shift=1)


def test_a_recording_takes_pytorch_s_place(bundle: Bundle, recording: Path) -> None:
    report = kvparity.compare(bundle, [shifted, own], against=recording)
    verdicts = {(record.runner, record.case): record.verdict for record in report.cases}
    assert {case for _, case in verdicts} == set(CASES), "cases that the recording has"
    assert all(verdict == "match" for (runner, _), verdict in verdicts.items() if runner == "shifted")
    assert verdicts["own", "prefill-7"] == "mismatch"
    assert "own first differs from the recording in case prefill-7" in report.text().splitlines()[0]
    assert report.covers.cases == len(CASES)


def test_two_recordings_are_held_against_each_other(
    bundle: Bundle, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.npz"
    kvparity.compare(bundle, own, cases=CASES, save_trace=mine)
    words = ["compare", str(bundle.root), "--trace", str(mine), "--against-trace"]
    assert cli.main([*words, str(recording)]) == 1
    assert "--against-trace theirs.npz" in capsys.readouterr().out.splitlines()[-1]
    assert cli.main([*words, str(mine)]) == 0
    assert capsys.readouterr().out.startswith("MATCH  trace:mine.npz: 3 of ")


def test_a_recording_of_logits_alone_says_so(bundle: Bundle, recording: Path, tmp_path: Path) -> None:
    with np.load(recording) as file:
        np.savez(tmp_path / "logits.npz", **{name: file[name] for name in file.files if name.endswith("/logits")})
    report = kvparity.compare(bundle, shifted, against=tmp_path / "logits.npz")
    assert report.verdict == "match"
    assert "logits only" in report.text().splitlines()[0]


def made(folder: Path, **options: Any) -> Bundle:
    return make_bundle(folder, options=ExportOptions(**options))


@pytest.mark.parametrize("options", [{"sliding_cache": "full"}, {"logits": "last"}, {}])
def test_two_bundles_of_a_model_are_compared_where_both_have_values(
    bundle: Bundle, tmp_path: Path, options: dict[str, Any]
) -> None:
    other = made(tmp_path / "other", **options)
    for first, second in ((bundle, other), (other, bundle)):
        report = kvparity.compare(first, own, against=second.root, cases=CASES)
        assert report.verdict == "match", report
        assert report.questions[0].question == "bundle"
        assert all(record.compared for record in report.cases)


def test_what_differs_between_two_bundles_is_named(bundle: Bundle, tmp_path: Path) -> None:
    other = made(tmp_path / "other", sliding_cache="full")

    def changed(opened: Bundle) -> Decoder:
        return Decoder(options=opened.options, window_shift=int(opened.options.sliding_cache == "full"))

    report = kvparity.compare(bundle, changed, against=other.root, cases=CASES)
    assert report.verdict == "mismatch"
    assert "changed first differs from the other bundle in case prefill-7" in report.text()
    assert "other" in report.command


def test_bundles_of_two_models_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    other = made(tmp_path / "other")
    manifest = replace(other.manifest, model=replace(other.model, vocab_size=24))
    write_manifest(other.root, manifest)
    with pytest.raises(kvparity.KvparityError, match=r"is of another model: vocabulary of 24, .* has 23"):
        kvparity.compare(bundle, own, against=other.root)


def test_questions_about_pytorch_are_refused(
    bundle: Bundle, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(kvparity.KvparityError, match="--exact, --locate ask about PyTorch"):
        kvparity.compare(bundle, own, against=recording, exact=True, locate=True)
    with pytest.raises(kvparity.KvparityError, match="not a readable"):
        kvparity.compare(bundle, own, against=os.devnull)
    words = ["compare", str(bundle.root), str(bundle.root), "--against-trace", str(recording)]
    assert cli.main(words) == 2
    assert "two references" in capsys.readouterr().err
