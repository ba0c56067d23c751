"""Reports as files: read again, several made one matrix, and one held against the other."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import cli
import kvparity
from kvparity.exporter.contract.bundle import Bundle
from kvparity.runners.base import RunnerInfo
from kvparity.runners.report.report import Report
from tests.synthetic import Decoder, make_bundle

CASES = ("prefill-*", "handoff-6")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("files") / "bundle")


def engine(version: str, name: str = "engine", **fault: Any) -> Callable[[Bundle], Decoder]:
    def make(_bundle: Bundle) -> Decoder:
        decoder = Decoder(**fault)
        decoder.info = RunnerInfo(name, version, {"dtype": "float32"})
        return decoder

    make.__name__ = name
    return make


def compare(bundle: Bundle, made: Any, path: Path | None = None, **options: Any) -> Report:
    report = kvparity.compare(bundle, made, **{"cases": CASES, **options})
    if path is not None:
        report.save(path)
    return report


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = cli.main([str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_file_is_shown_again_in_every_format(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = compare(bundle, engine("1.0", window_shift=1), tmp_path / "a.json")
    assert Report.load(tmp_path / "a.json") == report
    code, text, _ = run(capsys, "report", "show", tmp_path / "a.json")
    assert (code, text) == (1, report.text())
    for form in ("json", "html", "markdown", "junit"):
        assert run(capsys, "report", "show", tmp_path / "a.json", f"--{form}", "-")[1] == report.text(form)
    assert run(capsys, "report", "show", tmp_path / "a.json", "--junit", tmp_path / "a.xml")[0] == 1
    assert (tmp_path / "a.xml").read_text() == report.text("junit")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        ("{", "not readable JSON"),
        ("[]", "schema_version None"),
        ('{"schema_version": 1}', "schema_version 1, expected 2"),
        ('{"schema_version": 2}', "verdict: "),
    ],
)
def test_what_is_no_report_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, words: str
) -> None:
    if content is not None:
        (tmp_path / "a.json").write_text(content)
    code, out, err = run(capsys, "report", "show", tmp_path / "a.json")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert words in err


def test_two_versions_of_an_engine_stand_side_by_side(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare(bundle, engine("1.20.1"), tmp_path / "old.json")
    compare(bundle, engine("1.32.0", window_shift=1), tmp_path / "new.json")
    code, text, _ = run(capsys, "report", "merge", tmp_path / "old.json", tmp_path / "new.json", "--json", "-")
    merged = json.loads(text)
    assert code == 1
    assert [runner["name"] for runner in merged["runners"]] == ["engine@1.20.1", "engine@1.32.0"]
    assert {case["runner"] for case in merged["cases"] if case["verdict"] == "mismatch"} == {"engine@1.32.0"}
    assert merged["first_divergence"]["sentence"].startswith("engine@1.32.0 first differs")
    assert merged["questions"][0]["verdict"] == merged["verdict"] == "mismatch"


def test_reports_of_other_cases_of_one_engine_are_one_runner(bundle: Bundle) -> None:
    made = engine("1.0")
    parts = [compare(bundle, made, cases=cases) for cases in (("prefill-*",), ("handoff-6",))]
    merged, whole = kvparity.merge_reports(parts), compare(bundle, made)
    assert merged.runners[0].name == "engine"
    assert {record.case: record for record in merged.cases} == {record.case: record for record in whole.cases}
    assert merged.covers == whole.covers
    assert merged.questions[0].needs_tol == whole.questions[0].needs_tol


def test_a_case_that_one_runner_lacks_is_not_covered(bundle: Bundle) -> None:
    full = compare(bundle, engine("1", "full"))
    part = compare(bundle, engine("1", "part"), cases=("handoff-6",))
    merged = kvparity.merge_reports([full, part])
    assert merged.verdict == "match"
    assert merged.covers.cases == 1
    assert "part: not judged on" in merged.text()
    assert "1 of " in merged.text().splitlines()[0]


def test_the_same_report_merged_with_itself_is_itself(bundle: Bundle) -> None:
    report = compare(bundle, [engine("1", "a"), engine("2", "b", window_shift=1)])
    assert kvparity.merge_reports([report, report]) == report


def test_what_is_no_one_matrix_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    report = compare(bundle, engine("1"))
    other = compare(make_bundle(tmp_path / "other", cases=bundle_cases(bundle)), engine("1"), cases=())
    with pytest.raises(kvparity.KvparityError, match="one matrix is of one bundle"):
        kvparity.merge_reports([report, other])
    with pytest.raises(kvparity.KvparityError, match="--tol"):
        kvparity.merge_reports([report, compare(bundle, engine("1"), tol=1e-3)])
    with pytest.raises(kvparity.KvparityError, match="--output logits"):
        kvparity.merge_reports([report, compare(bundle, engine("1"), outputs="logits")])
    with pytest.raises(kvparity.KvparityError, match="does not say by a hash"):
        kvparity.merge_reports([report, compare(bundle, engine("1"), allow_modified=True)])
    with pytest.raises(kvparity.KvparityError, match="nothing to merge"):
        kvparity.merge_reports([])


def bundle_cases(bundle: Bundle) -> Any:
    return tuple(bundle.case(entry.name) for entry in bundle.manifest.cases[:2])


def test_a_report_that_asked_for_more_than_it_covers_is_whole_when_merged(bundle: Bundle) -> None:
    names = [entry.name for entry in bundle.manifest.cases]
    half = len(names) // 2
    parts = [
        compare(bundle, engine("1"), cases=tuple(chosen), require_complete=True)
        for chosen in (names[:half], names[half:])
    ]
    assert [part.verdict for part in parts] == ["error", "error"]
    assert kvparity.merge_reports(parts).verdict == "match"
    assert kvparity.merge_reports(parts[:1]).verdict == "error"


def test_an_upgrade_is_judged_in_one_line(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare(bundle, engine("1.20.1"), tmp_path / "old.json")
    compare(bundle, engine("1.32.0"), tmp_path / "new.json")
    compare(bundle, engine("1.33.0", window_shift=1), tmp_path / "bad.json")
    code, text, _ = run(capsys, "report", "diff", tmp_path / "old.json", tmp_path / "new.json")
    assert (code, text.splitlines()[0]) == (0, f"NOT WORSE  nothing changed; {len(text_cases(tmp_path))} as before")
    assert "engine: engine 1.20.1 -> engine 1.32.0" in text
    code, text, _ = run(capsys, "report", "diff", tmp_path / "new.json", tmp_path / "bad.json")
    assert code == 1
    assert re_first(text).startswith("WORSE  ")
    assert "first: engine, prefill-7: engine first differs from PyTorch" in re_first(text)
    code, text, _ = run(capsys, "report", "diff", tmp_path / "bad.json", tmp_path / "new.json", "--json")
    found = json.loads(text)
    assert code == 0
    assert {item["kind"] for item in found["items"]} == {"better", "same"}


def text_cases(folder: Path) -> list[Any]:
    return json.loads((folder / "old.json").read_text())["cases"]


def re_first(text: str) -> str:
    return text.splitlines()[0]


def closed(_bundle: Bundle) -> Decoder:
    raise RuntimeError("no such device")


closed.__name__ = "engine"


def test_an_engine_that_no_longer_opens_is_worse_and_never_gone(bundle: Bundle) -> None:
    found = kvparity.diff_reports(compare(bundle, engine("1")), compare(bundle, closed))
    assert found.verdict == "mismatch"
    assert {item.kind for item in found.items} == {"worse"}
    assert "no such device" in found.sentence


def test_new_and_gone_cases_are_told_and_nothing_in_common_is_no_answer(bundle: Bundle) -> None:
    old, new = (compare(bundle, engine("1"), cases=(name,)) for name in ("handoff-6", "prefill-7"))
    found = kvparity.diff_reports(old, new)
    assert {(item.kind, item.case) for item in found.items} == {("new", "prefill-7"), ("gone", "handoff-6")}
    assert found.verdict == "error"
    assert str(found).startswith("COULD NOT TELL")


def test_two_engines_are_held_against_each_other(bundle: Bundle) -> None:
    found = kvparity.diff_reports(compare(bundle, engine("1", "a")), compare(bundle, engine("2", "b", window_shift=1)))
    assert found.verdict == "mismatch"
    assert {item.runner for item in found.items} == {"b"}


def test_an_error_that_grew_within_the_limit_is_noted(bundle: Bundle) -> None:
    report = compare(bundle, engine("1"), tol=1.0)
    grown = replace(report, cases=tuple(replace(r, max_abs_diff=0.5) for r in report.cases))
    found = kvparity.diff_reports(
        replace(report, cases=tuple(replace(r, max_abs_diff=0.1) for r in report.cases)), grown
    )
    assert found.verdict == "match"
    assert any("error grew most" in note for note in found.notes)


def test_several_runners_show_the_matrix_and_what_failed(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare(bundle, [engine("1", "a"), engine("2", "b", window_shift=1)], tmp_path / "a.json")
    short, full = (run(capsys, "report", "show", tmp_path / "a.json", *flag)[1] for flag in ([], ["-v"]))
    assert "a       prefill-1" not in short
    assert "prefill-7" in short
    assert len(full.splitlines()) > len(short.splitlines())
    assert sum("prefill-1 " in line for line in full.splitlines()) == 2
    code, _, err = run(capsys, "report", "show", tmp_path / "a.json", "--json", "-", "--html", "-")
    assert code == 2
    assert "cannot both be printed" in err
