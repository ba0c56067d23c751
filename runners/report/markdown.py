"""The report as Markdown for a pull request: the answer, what failed, and everything else folded away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvparity.runners.diff.records import CaseRecord, QuestionRecord, ReportRecord
from kvparity.runners.report.words import (
    budget_cell,
    package_lines,
    position_cell,
    short,
    smallest,
    top_cell,
    verdict_sentence,
)

__all__ = ["markdown_report"]

_MARK = {"match": "✅", "mismatch": "❌", "error": "⚠️"}


def markdown_report(report: ReportRecord) -> str:
    """The report as GitHub-flavoured Markdown."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: ReportRecord) -> Iterator[str]:
    yield f"### {_MARK[report.verdict]} kvparity: `{report.bundle.name}`"
    yield ""
    yield _text(verdict_sentence(report))
    for question in report.questions:
        records = [record for record in report.cases if record.question == question.question]
        yield ""
        yield f"#### {_MARK[question.verdict]} {question.title}"
        yield ""
        yield from _question(report, question, records)
    if report.package is not None:
        yield ""
        yield "#### The package"
        yield ""
        yield from (f"- {_text(line.strip())}" for line in package_lines(report.package))
    for location in report.locations:
        yield ""
        yield f"**Located, `{location.runner}`:** {_text(location.sentence)}"
    if report.bundle.not_proven:
        yield ""
        yield _text(f"This bundle does not prove: {', '.join(report.bundle.not_proven)}.")
    yield ""
    yield "```sh"
    yield report.command
    yield "```"


def _question(report: ReportRecord, question: QuestionRecord, records: Sequence[CaseRecord]) -> Iterator[str]:
    yield f"{len(records)} cases judged. {smallest(question)}."
    for runner in report.runners:
        if not runner.available:
            yield f"- `{runner.name}` is not available: {_text(runner.message)}"
    yield from (f"- {_text(note)}" for note in question.notes)
    failing = [record for record in records if record.verdict != "match"]
    if failing:
        yield ""
        yield from _table(failing)
    if len(failing) < len(records):
        yield ""
        yield f"<details><summary>All {len(records)} cases</summary>"
        yield ""
        yield from _table(records)
        yield ""
        yield "</details>"


def _table(records: Sequence[CaseRecord]) -> Iterator[str]:
    yield "| runner | case | steps | max diff | worst position | budget | top-1 | verdict |"
    yield "|---|---|--:|--:|---|--:|--:|---|"
    for record in records:
        cells = (
            f"`{record.runner}`",
            f"`{record.case}`",
            str(record.steps),
            short(record.max_abs_diff),
            position_cell(record),
            budget_cell(record),
            top_cell(record),
            f"{_MARK[record.verdict]} {record.verdict}" + (f": {_text(record.message)}" if record.message else ""),
        )
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _text(words: str) -> str:
    """Words that Markdown and HTML leave alone."""
    for character in "\\`*_<>[]|":
        words = words.replace(character, "\\" + character)
    return words
