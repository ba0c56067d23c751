"""Reports: one answer in every form, the same bytes for the same input, and nothing that a program cannot read."""

from __future__ import annotations

import io
import json
import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.errors import TraceError
from kvparity.runners.base import RunnerSpec
from kvparity.runners.compare import token_text
from kvparity.runners.compare.judge import JudgeOptions, judge
from kvparity.runners.diff.metrics import METRICS
from kvparity.runners.report.html import html_report
from kvparity.runners.report.json_file import json_report, json_schema
from kvparity.runners.report.junit import junit_report
from kvparity.runners.report.markdown import markdown_report
from kvparity.runners.report.report import Report
from kvparity.runners.report.text import print_report
from kvparity.runners.report.words import round_up, share, times
from tests.synthetic import Decoder, make_bundle

DOCS = Path(__file__).parents[1] / "docs"
WRITERS = {"json": json_report, "html": html_report, "junit": junit_report, "markdown": markdown_report}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("report") / "bundle")


def poison(_graph: str, outputs: dict[str, Any]) -> dict[str, Any]:
    outputs["logits"] = outputs["logits"].copy()
    outputs["logits"][0, 0, 0] = np.nan
    return outputs


def crash(_graph: str, _outputs: dict[str, Any]) -> dict[str, Any]:
    raise RuntimeError("<script>alert(1)</script> | `x` \x07")


def report_of(bundle: Bundle, **decoder: Any) -> Report:
    specs = (RunnerSpec("ort"), RunnerSpec("ort", {"level": "none"}))
    options = JudgeOptions(specs, exact=True, cases=("prefill-*", "handoff-6", "batch-ragged"))

    def opener(_bundle: Bundle, spec: RunnerSpec) -> Decoder:
        return Decoder("float64") if spec.name == "exact" else Decoder(**(decoder if spec.options else {}))

    return judge(bundle, options, opener=opener)


FAULTS: dict[str, dict[str, Any]] = {
    "match": {},
    "mismatch": {"window_shift": 1},
    "nan": {"edit": poison},
    "error": {"edit": crash},
}
NAMES = list(FAULTS)


@pytest.fixture(scope="module")
def reports(bundle: Bundle) -> dict[str, Report]:
    return {name: report_of(bundle, **fault) for name, fault in FAULTS.items()}


@pytest.fixture(scope="module")
def again(bundle: Bundle) -> dict[str, Report]:
    return {name: report_of(bundle, **fault) for name, fault in FAULTS.items()}


def text_of(report: Report) -> str:
    stream = io.StringIO()
    print_report(report, stream)
    return stream.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_json_is_strict_round_trips_and_fits_the_published_schema(reports: dict[str, Report], name: str) -> None:
    text = json_report(reports[name])

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    data = json.loads(text, parse_constant=refuse)
    assert list(data)[:3] == ["schema_version", "verdict", "tol"]
    assert {"results", "first_divergence"} <= set(data)
    fields = (
        "runner case step tensor layer verdict max_abs_diff worst_position expected actual needs_tol budget".split()
    )
    assert all(set(fields) <= set(result) for result in data["results"])
    assert TypeAdapter(Report).validate_json(text, strict=False) == reports[name]


def test_the_published_schema_is_current() -> None:
    assert (DOCS / "report.schema.json").read_text(encoding="utf-8") == json_schema(), (
        "python -m kvparity.runners.report.json_file > docs/report.schema.json"
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", [*WRITERS, "text"])
def test_the_same_input_gives_the_same_bytes(
    bundle: Bundle, reports: dict[str, Report], again: dict[str, Report], name: str, form: str
) -> None:
    writer = {**WRITERS, "text": text_of}[form]
    text = writer(reports[name])
    assert writer(again[name]) == text
    assert str(bundle.root) not in text


def test_the_first_line_of_a_mismatch_is_its_first_divergence(reports: dict[str, Report]) -> None:
    first, *_, last = text_of(reports["mismatch"]).strip().splitlines()
    assert first.startswith("MISMATCH  ort:level=none first differs from PyTorch in float64 in case prefill-7, step 0")
    assert last == ("Narrow it: python cli.py compare BUNDLE --exact --locate --runner ort:level=none --case prefill-7")
    assert text_of(reports["match"]).startswith("MATCH  ort, ort:level=none, exact:")
    assert text_of(reports["error"]).startswith("COULD NOT TELL  ort:level=none, case prefill-1: RuntimeError")
    assert "logits of token 0 is nan" in text_of(reports["nan"]).splitlines()[0]


def test_one_case_alone_is_shown_call_by_call(bundle: Bundle) -> None:
    options = JudgeOptions((RunnerSpec("ort"),), cases=("handoff-6",))
    text = text_of(judge(bundle, options, opener=lambda _b, _s: Decoder()))
    assert "ort, handoff-6, call by call:" in text
    assert re.search(r"^ +1 +6–6 ", text, re.MULTILINE)


def test_junit_counts_and_says_what_failed(reports: dict[str, Report]) -> None:
    root = ElementTree.fromstring(junit_report(reports["mismatch"]))
    suites = {suite.get("name"): suite for suite in root}
    assert set(suites) == {"gate.ort", "gate.ort:level=none", "exact.exact"}
    failing = suites["gate.ort:level=none"]
    assert int(failing.get("failures", "")) == len(failing.findall("testcase/failure")) > 0
    assert suites["gate.ort"].get("failures") == "0"
    errors = ElementTree.fromstring(junit_report(reports["error"]))
    assert len(errors.findall("testsuite/testcase/error")) == sum(c.verdict == "error" for c in reports["error"].cases)
    assert "time" not in junit_report(reports["match"])


def test_markdown_escapes_what_an_engine_says(reports: dict[str, Report]) -> None:
    text = markdown_report(reports["error"])
    assert "<script>" not in text
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {9}
    assert markdown_report(reports["match"]).startswith("### ✅")
    assert markdown_report(reports["mismatch"]).startswith("### ❌")


@pytest.mark.parametrize("name", NAMES)
def test_html_needs_no_network_and_runs_nothing(reports: dict[str, Report], name: str) -> None:
    page = html_report(reports[name])
    assert "default-src 'none'" in page
    assert not re.search(r"@import|url\(|https?:", page)
    tags = re.sub(r'="[^"]*"', "", page)  # a hint may quote an engine's message, and no quote ends it
    assert not re.search(r"<(link|img|iframe|object)\b", tags)
    assert page.count("<script>") == page.count("</script>") == 1, "what an engine says never becomes a script"
    script = page.split("<script>")[1].split("</script>")[0]
    allowed = b64encode(sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{allowed}'" in page.replace("&#39;", "'"), "the page runs its own script and no other"
    assert page.count("<svg") >= (1 if name == "error" else 4)
    anchors = set(re.findall(r'href="#([^"]+)"', page))
    assert anchors <= set(re.findall(r'id="([^"]+)"', page))
    assert "nan" not in " ".join(re.findall(r' d="([^"]*)"', page))


def test_html_says_the_same_as_the_text(reports: dict[str, Report]) -> None:
    page = html_report(reports["mismatch"])
    first = reports["mismatch"].first_divergence
    assert first is not None
    assert first.sentence in page
    assert reports["mismatch"].command in page
    assert "window 6" in page
    assert re.search(r">token (\d+) \(\1\)<", page)  # this bundle has no tokenizer
    assert all(metric.title in page for metric in METRICS)


def test_tokens_are_shown_as_the_text_that_the_bundle_s_tokenizer_gives(
    bundle: Bundle, reports: dict[str, Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tokenizer:
        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            return f"<b>{ids[0]}"

    monkeypatch.setattr(token_text, "open_tokenizer", lambda path: Tokenizer())
    report = token_text.with_token_text(bundle, reports["mismatch"])
    choice = next(record for record in report.cases if record.top_differences).top_differences[0].choices[0]
    assert choice.text == f"'<b>{choice.token}'"
    assert f"&lt;b&gt;{choice.token}' ({choice.token})" in html_report(report).replace("&#39;", "'")


def test_a_report_saves_itself_by_suffix_and_shows_itself_in_a_notebook(
    reports: dict[str, Report], tmp_path: Path
) -> None:
    report = reports["mismatch"]
    for name, form in (("r.html", "html"), ("r.json", "json"), ("r.md", "markdown"), ("r.xml", "junit")):
        assert report.save(tmp_path / name).read_text(encoding="utf-8") == WRITERS[form](report)
    assert report.save(tmp_path / "summary.txt", "markdown").read_text(encoding="utf-8") == markdown_report(report)
    with pytest.raises(TraceError, match=r"suffix '\.pdf' names no format of a report; known are \.html"):
        report.save(tmp_path / "r.pdf")
    frame = report._repr_html_()
    assert frame.startswith("<iframe srcdoc=")
    assert "<h1>" not in frame
    assert str(report).startswith("MISMATCH")


@given(st.floats(1e-300, 1e300))
def test_a_tolerance_is_shown_rounded_up_so_that_it_passes(value: float) -> None:
    shown = float(round_up(value))
    assert value <= shown <= value * 1.02


def test_shares_say_all_only_where_it_is_all() -> None:
    assert share(1.0) == "100 %"
    assert share(0.99999999) == "99.99 %"
    assert share(0.0) == "0 %"
    assert times(2800.0) == "2,800"
    assert times(1.234) == "1.2"


def test_a_runner_of_another_question_is_not_called_unavailable(bundle: Bundle) -> None:
    """The exact runner is asked one question and the others another; each table lists its own."""
    stream = io.StringIO()
    print_report(report_of(bundle), stream)
    assert "unavailable" not in stream.getvalue()
