"""The report on a terminal: the answer first, one row per case and runner, and the next command last."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import IO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvparity.runners.diff.records import (
    CaseRecord,
    QuestionRecord,
    ReportRecord,
    Result,
    RunnerRecord,
    Verdict,
    worst_verdict,
)
from kvparity.runners.report.words import (
    budget_cell,
    package_lines,
    position_cell,
    short,
    smallest,
    times,
    top_cell,
    verdict_sentence,
)

__all__ = ["print_report"]

_FAILING = 5  # cases of a runner that are listed where there are several runners
_STYLE: dict[Verdict, str] = {"match": "green", "mismatch": "bold red", "error": "yellow"}


def print_report(report: ReportRecord, stream: IO[str], *, verbose: bool = False) -> None:
    """Write the report as text; colours and the terminal's width only where the stream is a terminal.

    Args:
        report: The report.
        stream: Where to.
        verbose: Show every case also where several runners were compared; else those that do not match.
    """
    console = Console(file=stream, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console = Console(file=stream, highlight=False, soft_wrap=True, width=160)
    console.print(Text(verdict_sentence(report), style=_STYLE[report.verdict]))
    for question in report.questions:
        console.print()
        console.print(Text(question.title, style="bold"))
        records = [record for record in report.cases if record.question == question.question]
        asked = _asked(report, records)
        several = len(asked) > 1 and bool(records)
        if several:
            console.print(_matrix(asked, records), soft_wrap=False)
        listed = records if verbose or not several else list(_failing(asked, records))
        if listed:
            console.print(*([""] if several else []), _table(listed), sep="\n", soft_wrap=False)
        for record in listed if _narrow(records) else []:
            console.print()
            console.print(Text(f"{record.runner}, {record.case}, call by call:", style="dim"))
            console.print(_step_table(report, record), soft_wrap=False)
        for line in _lines(report, question, records):
            console.print(Text(line))
    if report.package is not None:
        console.print()
        for line in package_lines(report.package):
            console.print(Text(line))
    for location in report.locations:
        console.print()
        console.print(Text(f"Located, {location.runner}: {location.sentence}"))
    if report.bundle.not_proven:
        console.print()
        console.print(Text(f"This bundle does not prove: {', '.join(report.bundle.not_proven)}", style="dim"))
    console.print()
    console.print(Text(_last(report)))


def _failing(asked: list[RunnerRecord], records: list[CaseRecord]) -> Iterator[CaseRecord]:
    """Of every runner, the first cases that do not match."""
    for runner in asked:
        yield from [r for r in records if r.runner == runner.name and r.verdict != "match"][:_FAILING]


def _table(records: list[CaseRecord]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    timed = any(record.decode_ms is not None for record in records)
    for title, justify in _COLUMNS:
        if timed or title != _MS:
            table.add_column(title, justify=justify, no_wrap=title != "case")  # type: ignore[arg-type]
    for record in records:
        verdict = Text(record.verdict, style=_STYLE[record.verdict])
        played = str(record.steps) if record.played == record.steps else f"{record.played}/{record.steps}"
        cells = (record.runner, record.case, played, short(record.max_abs_diff), position_cell(record))
        table.add_row(
            *cells, budget_cell(record), top_cell(record), *([short(record.decode_ms)] if timed else []), verdict
        )
    return table


def _asked(report: ReportRecord, records: list[CaseRecord]) -> list[RunnerRecord]:
    """Runners of a question: those that have a case in it, and those that could not be had."""
    names = {record.runner for record in records}
    return [runner for runner in report.runners if runner.name in names or not runner.available]


def _matrix(asked: list[RunnerRecord], records: list[CaseRecord]) -> Table:
    """One row per runner, and which of its cases match; those that could not be had too."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("runner", "version", "cases that match", "max diff", "budget", "ms per decode step", "verdict"):
        table.add_column(title, justify="left" if title in ("runner", "version", "verdict") else "right", no_wrap=True)
    for runner in asked:
        own = [record for record in records if record.runner == runner.name]
        verdict = worst_verdict([record.verdict for record in own]) if own else "error"
        worst = max((record for record in own if record.max_abs_diff is not None), key=_size, default=None)
        ratios = [budget.ratio_max for record in own for budget in record.budget.values()]
        took = sorted(record.decode_ms for record in own if record.decode_ms is not None)
        table.add_row(
            runner.name,
            runner.version or "–",
            f"{sum(record.verdict == 'match' for record in own)} of {len(own)}" if own else "–",
            short(worst.max_abs_diff) if worst else "–",
            f"{times(max(ratios))}×" if ratios else "–",
            short(took[len(took) // 2]) if took else "–",
            Text(verdict, style=_STYLE[verdict]) if own else _absent(runner),
        )
    return table


def _absent(runner: RunnerRecord) -> Text:
    return Text("unavailable", style=_STYLE["error"]) if runner.required else Text("not taken", style="dim")


def _size(record: CaseRecord) -> float:
    return record.max_abs_diff if isinstance(record.max_abs_diff, float) else float("inf")


_MS = "ms/step"
_COLUMNS = (
    ("runner", "left"),
    ("case", "left"),
    ("steps", "right"),
    ("max diff", "right"),
    ("worst position", "left"),
    ("budget", "right"),
    ("top-1", "right"),
    (_MS, "right"),
    ("verdict", "left"),
)


def _narrow(records: list[CaseRecord]) -> bool:
    """Whether one case was chosen, so that its calls are worth a table of their own."""
    return len({record.case for record in records}) == 1 and any(record.steps > 1 for record in records)


def _step_table(report: ReportRecord, record: CaseRecord) -> Table:
    """One row per call: its worst output, or its first fault of structure."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("step", "slots", "max diff", "worst position", "budget", "verdict"):
        table.add_column(title, justify="right" if title in ("step", "slots", "max diff", "budget") else "left")
    spans = record.spans()
    calls = groupby(_own(report, record), key=lambda result: result.step)
    for step, group in calls:
        results = list(group)
        worst = max(results, key=_badness)
        ratios = [result.budget for result in results if isinstance(result.budget, float)]
        verdict = worst_verdict([result.verdict for result in results])
        place = f"{worst.tensor} @ {worst.worst_position}" if worst.max_abs_diff else worst.detail and worst.tensor
        table.add_row(
            str(step),
            f"{spans[step][0]}–{spans[step][1] - 1}",
            short(worst.max_abs_diff) if worst.max_abs_diff is not None else worst.reason or "–",
            place or "–",
            f"{times(max(ratios))}×" if ratios else "–",
            Text(verdict, style=_STYLE[verdict]),
        )
    return table


def _own(report: ReportRecord, record: CaseRecord) -> list[Result]:
    key = (record.question, record.runner, record.case)
    return [result for result in report.results if (result.question, result.runner, result.case) == key]


def _badness(result: Result) -> tuple[bool, float]:
    structural = result.verdict == "mismatch" and not isinstance(result.max_abs_diff, float)
    return structural, result.max_abs_diff if isinstance(result.max_abs_diff, float) else 0.0


def _lines(report: ReportRecord, question: QuestionRecord, records: list[CaseRecord]) -> Iterator[str]:
    for runner in report.runners:
        if not runner.available:
            yield f"{runner.name}: not available: {runner.message}"
    names = list(dict.fromkeys(record.case for record in records))
    for name in dict.fromkeys(record.runner for record in records):
        own = {record.case: record.verdict for record in records if record.runner == name}
        failing = sum(verdict != "match" for verdict in own.values())
        if failing > _FAILING and len(own) < len(records):
            yield f"{name}: {failing} cases do not match; -v lists every case"
        if missing := [case for case in names if case not in own]:
            yield f"{name}: not judged on {len(missing)} of these {len(names)} cases: {_some(missing)}"
    said: dict[tuple[str, str], list[str]] = {}
    for record in records:
        if record.message:
            said.setdefault((record.runner, record.message), []).append(record.case)
    for (name, message), cases in said.items():
        yield f"{name}, {_some(cases)}: {message}"
    yield smallest(question)
    yield from question.notes


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _last(report: ReportRecord) -> str:
    return f"Narrow it: {report.command}" if report.first_divergence else f"Repeat: {report.command}"
