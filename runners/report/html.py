"""The report as one HTML page that needs no network: what ``report.html.jinja`` shows, and how it is counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from kvparity.runners.diff.metrics import METRICS
from kvparity.runners.diff.records import CaseRecord, QuestionRecord, ReportRecord, TopDifference
from kvparity.runners.report import charts
from kvparity.runners.report.element import Element, clean
from kvparity.runners.report.script import SCRIPT, SCRIPT_HASH
from kvparity.runners.report.style import STYLE
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

__all__ = ["html_report"]

_WORDS = {"match": "MATCH", "mismatch": "MISMATCH", "error": "COULD NOT TELL"}


def html_report(report: ReportRecord) -> str:
    """The report as HTML text."""
    verdict, _, sentence = verdict_sentence(report).partition("  ")
    noise = {kind: f"{value:.2g}" for kind, value in report.bundle.noise.items()}
    page = _environment().get_template("report.html.jinja")
    return page.render(report=report, verdict=verdict, sentence=sentence, noise=noise, words=_WORDS)


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    environment.filters.update(
        short=short,
        package_lines=package_lines,
        smallest=smallest,
        position_cell=position_cell,
        budget_cell=budget_cell,
        top_cell=top_cell,
        pairs=_pairs,
        size=_sortable,
    )
    drawn = {name: _markup(getattr(charts, name)) for name in ("position_chart", "depth_chart", "heat_chart")}
    environment.globals.update(
        **drawn,
        legend=_markup(lambda names, band: charts.legend(names, band=band)),
        style=Markup(STYLE),
        script=Markup(SCRIPT),
        script_hash=SCRIPT_HASH,
        command_of=_command,
        heat_levels=charts.HEAT_LEVELS,
        matrix_cell=_matrix_cell,
        focus=_focus,
        has_noise=lambda records: any(curve.noise for record in records for curve in record.curves),
        has_floor=lambda record: any(curve.largest_noise is not None for curve in record.curves),
        worst_of=lambda records: max(records, key=lambda record: _size(record.max_abs_diff)),
        worst_verdict=lambda records: min((r.verdict for r in records), key=("mismatch", "error", "match").index),
        token_rows=_token_rows,
        output_table=_output_table,
        runner_rows=_runner_rows,
    )
    return environment


def _markup(draw: Callable[..., Element | None]) -> Callable[..., Markup]:
    """A chart as markup; empty where there is none."""

    def drawn(*arguments: Any) -> Markup:
        element = draw(*arguments)
        return Markup("" if element is None else ElementTree.tostring(element, encoding="unicode", method="html"))

    return drawn


def _focus(question: QuestionRecord, records: Sequence[CaseRecord]) -> list[CaseRecord]:
    """The case whose pictures say most: wrong at most positions, else the one with most calls."""
    first = question.first_divergence
    wrong = [r for r in records if first and r.runner == first.runner and r.verdict == "mismatch"]
    if wrong:
        chosen = max(wrong, key=lambda record: (len(record.pads) == 1, _wrong_positions(record)))
    else:
        chosen = max(records, key=lambda record: (record.played, sum(record.chunks)))
    return [record for record in records if record.case == chosen.case]


def _wrong_positions(record: CaseRecord) -> int:
    """Token slots over the limit, summed over the logits and every cache slot."""
    limit = max(record.limits.values(), default=0.0)
    return sum(error is not None and error > limit for curve in record.curves for error in curve.errors)


def _matrix_cell(records: Sequence[CaseRecord], case: str, runner: str) -> dict[str, Any]:
    """Text, style, hint and sort value of one case on one runner, and whether there is anything to see of it."""
    record = next((record for record in records if (record.case, record.runner) == (case, runner)), None)
    if record is None:
        return {"text": "–", "style": "none", "hint": None, "there": False, "value": "-1"}
    common = {"there": True, "value": _sortable(record.max_abs_diff)}
    if record.verdict == "error":
        return {"text": "error", "style": "none", "hint": record.message, **common}
    if not isinstance(record.max_abs_diff, float):
        return {"text": "not finite", "style": f"deep h{charts.HEAT_LEVELS - 1}", "hint": None, **common}
    level = charts.heat_level(record.max_abs_diff, max(record.limits.values(), default=0.0)) or 0
    if record.verdict == "mismatch":
        level = max(level, charts.HEAT_LEVELS - 3)
    deep = " deep" if 7 <= level <= 8 or level == charts.HEAT_LEVELS - 1 else ""
    return {"text": short(record.max_abs_diff), "style": f"h{level}{deep}", "hint": position_cell(record), **common}


def _sortable(value: object) -> str:
    """A difference as a script sorts it; what is not finite, or no number at all, is the largest."""
    return f"{value:.6g}" if isinstance(value, float) else "1e300"


def _command(report: ReportRecord, record: CaseRecord) -> str:
    """The command that repeats one case on one runner; empty where the report does not say."""
    command = next((runner.command for runner in report.runners if runner.name == record.runner), "")
    return f"{command} --case {record.case}" if command else ""


def _token_rows(records: Sequence[CaseRecord]) -> list[list[str]]:
    """Every place where a runner would choose another token, as far as the report keeps them."""
    return [_token_row(record, found) for record in records for found in record.top_differences]


def _token_row(record: CaseRecord, found: TopDifference) -> list[str]:
    expected = max(found.choices, key=lambda choice: _size(choice.expected))
    actual = max(found.choices, key=lambda choice: _size(choice.actual))
    cells = [
        record.runner,
        record.case,
        str(found.position) + (f" (row {found.batch})" if len(record.pads) > 1 else ""),
    ]
    for choice, value in ((expected, expected.expected), (actual, actual.actual)):
        cells += [f"{choice.text} ({choice.token})", short(value, 5)]
    return [*cells, short(found.gap, 3), "near tie" if found.near_tie else ""]


def _output_table(report: ReportRecord, question: QuestionRecord) -> dict[str, Any]:
    """One row per runner and output: every metric of :data:`runners.diff.metrics.METRICS`, and the budget."""
    records = [record for record in report.tensors if record.question == question.question]
    budgets = any(record.budget for record in records)
    heads = ["runner", "output", "layer", *(metric.title for metric in METRICS)]
    heads += ["budget, max", "budget, rms"] if budgets else []
    rows = []
    for record in records:
        cells = [record.runner, record.tensor, "–" if record.layer is None else str(record.layer)]
        cells += [short(record.metrics.get(metric.name), 3) for metric in METRICS]
        if budgets:
            budget = record.budget
            cells += [f"{times(r)}×" for r in (budget.ratio_max, budget.ratio_rms)] if budget else ["–", "–"]
        rows.append(cells)
    hints = {metric.title: f"{metric.unit}; {metric.better} is better" for metric in METRICS}
    return {"heads": heads, "rows": rows, "hints": hints, "numbers": range(2, len(heads))}


def _runner_rows(report: ReportRecord) -> list[tuple[str, ...]]:
    """Runners with their versions and settings."""
    return [
        (
            runner.name,
            f"{runner.engine} {runner.version}",
            _pairs(runner.settings),
            (runner.adapted or "graphs as they are") if runner.available else f"not available: {runner.message}",
        )
        for runner in report.runners
    ]


def _pairs(values: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _size(value: object) -> float:
    """A difference for sorting; what is not finite is the largest."""
    return value if isinstance(value, float) else -1.0 if value is None else math.inf
