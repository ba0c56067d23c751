"""The report as JUnit XML: a suite per question and runner, a test case per case; no times, so the bytes repeat."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from kvparity.runners.diff.records import CaseRecord, QuestionRecord, ReportRecord, RunnerRecord
from kvparity.runners.report.words import position_cell, short

__all__ = ["junit_report"]

# XML 1.0 cannot hold these even when escaped, and an engine's message may contain them
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_report(report: ReportRecord) -> str:
    """The report as JUnit XML: mismatches are failures, what could not be told is an error."""
    root = ElementTree.Element("testsuites", name=f"kvparity {report.bundle.name}")
    for question in report.questions:
        for runner in report.runners:
            records = [r for r in report.cases if (r.question, r.runner) == (question.question, runner.name)]
            if records or not runner.available:
                _suite(root, question, runner, records, report.not_judged)
    ElementTree.indent(root, " ")
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _suite(
    root: ElementTree.Element,
    question: QuestionRecord,
    runner: RunnerRecord,
    records: list[CaseRecord],
    not_judged: tuple[str, ...],
) -> None:
    name = f"{question.question}.{runner.name}"
    suite = ElementTree.SubElement(root, "testsuite", name=name)
    for record in records:
        case = ElementTree.SubElement(suite, "testcase", classname=name, name=record.case)
        if record.verdict == "mismatch" and record.first_divergence is not None:
            _add(case, "failure", record.first_divergence.sentence, f"max diff {short(record.max_abs_diff, 6)}")
        elif record.verdict == "error":
            _add(case, "error", record.message, "")
        else:
            ElementTree.SubElement(case, "system-out").text = _match(record)
    if not runner.available:
        case = ElementTree.SubElement(suite, "testcase", classname=name, name="open")
        if runner.required:
            _add(case, "error", runner.message, "")
        else:
            ElementTree.SubElement(case, "skipped", message=runner.message)
    for skipped in not_judged if question.question in ("gate", "exact") else ():
        case = ElementTree.SubElement(suite, "testcase", classname=name, name=skipped)
        ElementTree.SubElement(case, "skipped", message="no vectors were recorded; --live judges it")
    verdicts = [record.verdict for record in records]
    suite.set("tests", str(len(suite)))
    suite.set("failures", str(verdicts.count("mismatch")))
    suite.set("errors", str(verdicts.count("error") + (not runner.available and runner.required)))
    suite.set("skipped", str(len(suite.findall("testcase/skipped"))))


def _match(record: CaseRecord) -> str:
    return f"max diff {short(record.max_abs_diff, 6)}, worst {position_cell(record)}, {record.compared} values"


def _add(case: ElementTree.Element, tag: str, message: str, text: str) -> None:
    clean = _FORBIDDEN.sub("?", message)
    ElementTree.SubElement(case, tag, message=clean).text = text or None
