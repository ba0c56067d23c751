"""Tables of the HTML report: metrics by output, and what the report was made with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from kvparity.runners.diff.metrics import METRICS
from kvparity.runners.diff.records import QuestionRecord, ReportRecord
from kvparity.runners.report.element import Child, Element, el
from kvparity.runners.report.words import short, times

__all__ = ["definitions", "environment", "tensor_table"]


def definitions(facts: Sequence[tuple[str, Child]]) -> Element:
    """Names and values, as many beside each other as fit."""
    return el("dl", [el("div", el("dt", name), el("dd", value)) for name, value in facts], class_="facts")


def tensor_table(report: ReportRecord, question: QuestionRecord) -> Element:
    """One row per runner and output: every metric of :data:`runners.diff.metrics.METRICS`, and the budget."""
    records = [record for record in report.tensors if record.question == question.question]
    budgets = any(record.budget for record in records)
    titles = ["runner", "output", "layer", *(metric.title for metric in METRICS)]
    titles += ["budget, max", "budget, rms"] if budgets else []
    hints = {metric.title: f"{metric.unit}; {metric.better} is better" for metric in METRICS}
    head = [el("th", title, class_="n" if i > 1 else None, title=hints.get(title)) for i, title in enumerate(titles)]
    rows = []
    for record in records:
        cells = [record.runner, record.tensor, "–" if record.layer is None else str(record.layer)]
        cells += [short(record.metrics.get(metric.name), 3) for metric in METRICS]
        if budgets:
            budget = record.budget
            cells += [f"{times(r)}×" for r in (budget.ratio_max, budget.ratio_rms)] if budget else ["–", "–"]
        rows.append(el("tr", [el("td", cell, class_="n" if i > 1 else None) for i, cell in enumerate(cells)]))
    return el("table", el("thead", el("tr", head)), el("tbody", rows), class_="small")


def environment(report: ReportRecord) -> Iterator[Element]:
    """Runners with their versions and settings, the packages that made the bundle, PyTorch's own noise."""
    rows = []
    for runner in report.runners:
        state = runner.adapted or "graphs as they are" if runner.available else f"not available: {runner.message}"
        cells = (runner.name, f"{runner.engine} {runner.version}", _pairs(runner.settings), state)
        rows.append(el("tr", [el("td", cell) for cell in cells]))
    head = el("tr", [el("th", title) for title in ("runner", "engine", "settings", "graphs")])
    yield el("div", el("table", el("thead", head), el("tbody", rows)), class_="wide")
    noise = {kind: f"{value:.2g}" for kind, value in report.bundle.noise.items()}
    facts: list[tuple[str, Child]] = [("Bundle made with", _pairs(report.bundle.versions) or "not recorded")]
    facts.append(("PyTorch's own float32 error", _pairs(noise) or "not recorded"))
    facts.append(("Checkpoint", report.bundle.source))
    facts.append(("Exercises", ", ".join(report.bundle.exercises) or "not recorded"))
    facts.append(("Does not prove", ", ".join(report.bundle.not_proven) or "nothing known is left out"))
    yield definitions(facts)


def _pairs(values: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())
