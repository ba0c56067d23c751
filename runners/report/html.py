"""The report as one HTML page that needs no network: the answer, the matrix, the pictures, the command to repeat it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from kvparity.runners.diff.records import CaseRecord, QuestionRecord, ReportRecord, TopDifference
from kvparity.runners.report.charts import HEAT_LEVELS, depth_chart, heat_chart, heat_level, legend, position_chart
from kvparity.runners.report.element import Child, Element, el, to_html
from kvparity.runners.report.style import STYLE
from kvparity.runners.report.tables import definitions, environment, tensor_table
from kvparity.runners.report.words import budget_cell, position_cell, short, smallest, top_cell, verdict_sentence

__all__ = ["html_report"]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_NUMBERS = (4, 6, 7)  # columns of the token table
_WORDS = {"match": "MATCH", "mismatch": "MISMATCH", "error": "COULD NOT TELL"}


def html_report(report: ReportRecord) -> str:
    """The report as HTML text."""
    body: list[Element] = [_header(report)]
    if report.locations:
        body.append(el("h2", "Located"))
    body += [el("p", el("strong", f"{found.runner}: "), found.sentence) for found in report.locations]
    for question in report.questions:
        body += _question(report, question)
    body += [el("h2", "Environment"), *environment(report)]
    body += [el("h2", "Repeat"), el("pre", report.command)]
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width,initial-scale=1"),
        el("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        el("title", f"kvparity: {report.bundle.name}, {report.verdict}"),
        el("style", STYLE),
    )
    return to_html(el("html", head, el("body", el("main", body)), lang="en"))


def _header(report: ReportRecord) -> Element:
    bundle = report.bundle
    words, _, sentence = verdict_sentence(report).partition("  ")
    layers = el("span", [el("i", kind, class_=kind) for kind in bundle.pattern], class_="layers")
    facts = (
        ("Bundle", bundle.name),
        ("Model", f"{bundle.architecture}, {bundle.parameters:,} parameters"),
        ("Layers: s sliding, F full", layers),
        ("Window", str(bundle.window or "none")),
        ("Layout, profile", f"{bundle.layout}, {bundle.profile}, {bundle.dtype}"),
        ("Runners", ", ".join(runner.name for runner in report.runners) or "none"),
    )
    answer = el(
        "div",
        el("span", words, class_="verdict"),
        el("p", sentence, class_="sentence"),
        class_=f"answer {report.verdict}",
    )
    return el("header", el("h1", "kvparity compare"), answer, definitions(facts))


def _question(report: ReportRecord, question: QuestionRecord) -> Iterator[Element]:
    records = [record for record in report.cases if record.question == question.question]
    yield el("h2", question.title)
    answer = el("span", _WORDS[question.verdict], class_="tag")
    yield el("p", answer, f"  {smallest(question)}.", class_=question.verdict)
    if question.notes:
        yield el("ul", [el("li", note) for note in question.notes], class_="notes")
    if not records:
        return
    yield from _matrix(question, records)
    focus = _focus(question, records)
    yield from _pictures(report, focus)
    yield from _tokens(records)
    yield el("h3", "Every metric, by output, over all cases")
    yield el("div", tensor_table(report, question), class_="wide")
    yield el("h3", "Every case")
    for name in dict.fromkeys(record.case for record in records):
        first = question.first_divergence
        same = [record for record in records if record.case == name]
        yield _case(report, same, unfolded=first is not None and first.case == name)


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


def _matrix(question: QuestionRecord, records: Sequence[CaseRecord]) -> Iterator[Element]:
    runners = list(dict.fromkeys(record.runner for record in records))
    by_place = {(record.case, record.runner): record for record in records}
    yield el("p", "Largest difference of each case; colour is its distance from the limit.", class_="soft")
    head = ["case", *runners]
    rows = []
    for case in dict.fromkeys(record.case for record in records):
        link = el("a", case, href=f"#{_anchor(question.question, case)}")
        rows.append(el("tr", el("th", link), [_cell(by_place.get((case, runner))) for runner in runners]))
    parts = 3 if len(runners) == 1 else 2 if len(runners) <= 3 else 1
    size = math.ceil(len(rows) / parts)
    tables = [_matrix_part(head, rows[start : start + size]) for start in range(0, len(rows), size)]
    yield el("div", tables, class_="wide beside")
    yield _scale()


def _matrix_part(head: Sequence[str], rows: list[Element]) -> Element:
    titles = [el("th", title, class_="n" if i else None) for i, title in enumerate(head)]
    return el("table", el("thead", el("tr", titles)), el("tbody", rows), class_="matrix")


def _cell(record: CaseRecord | None) -> Element:
    if record is None:
        return el("td", "–", class_="cell none")
    if record.verdict == "error":
        return el("td", "error", class_="cell none", title=record.message)
    if not isinstance(record.max_abs_diff, float):
        return el("td", "not finite", class_=f"cell deep h{HEAT_LEVELS - 1}")
    limit = max(record.limits.values(), default=0.0)
    level = heat_level(record.max_abs_diff, limit) or 0
    if record.verdict == "mismatch":
        level = max(level, HEAT_LEVELS - 3)
    deep = " deep" if 7 <= level <= 8 or level == HEAT_LEVELS - 1 else ""
    return el("td", short(record.max_abs_diff), class_=f"cell h{level}{deep}", title=position_cell(record))


def _scale() -> Element:
    steps = [el("i", class_=f"h{level}") for level in range(HEAT_LEVELS)]
    return el("p", "1e-4 of the limit", el("span", steps), "100 × the limit and more", class_="scale")


def _pictures(report: ReportRecord, records: Sequence[CaseRecord]) -> Iterator[Element]:
    """The charts of one case."""
    case, runners = records[0], [record.runner for record in records]
    yield el("h3", f"{case.case}: error of the logits at each position")
    if case.why:
        yield el("p", case.why[0].upper() + case.why[1:] + ".", class_="soft")
    yield from _known(position_chart(report.bundle, records))
    band = any(curve.noise for record in records for curve in record.curves)
    yield legend(runners, band=band)
    depth = depth_chart(records, report.bundle.pattern)
    if depth is not None:
        yield el("h3", f"{case.case}: error against layer depth")
        text = "Each layer's cache holds what entered that layer, so the first point to rise names the layer before it."
        yield el("p", text, class_="soft")
        yield depth
        yield legend(runners, band=any(curve.largest_noise is not None for curve in case.curves))
    yield from _heat(report, records)


def _heat(report: ReportRecord, records: Sequence[CaseRecord]) -> Iterator[Element]:
    worst = max(records, key=lambda record: _size(record.max_abs_diff))
    chart = heat_chart(report.bundle, worst)
    if chart is not None:
        yield el("h3", f"{worst.case}: cache rows on {worst.runner}")
        text = "Keys and values of each layer by row position. Rows that a bounded cache never returned are blank."
        yield el("p", text, class_="soft")
        yield chart
        yield _scale()


def _tokens(records: Sequence[CaseRecord]) -> Iterator[Element]:
    """Every place where a runner would choose another token, as far as the report keeps them."""
    flips, ties = sum(record.flips for record in records), sum(record.near_ties for record in records)
    if not flips:
        return
    yield el("h3", "Where the likeliest token differs")
    text = f"{flips} positions, of which {ties} near ties: closer than twice the limit."
    shown = sum(len(record.top_differences) for record in records)
    yield el("p", text + (f" The first {shown} are listed." if shown < flips else ""), class_="soft")
    titles = ("runner", "case", "position", "reference chooses", "logit", "runner chooses", "logit", "gap", "")
    head = [el("th", title, class_="n" if i in _NUMBERS else None) for i, title in enumerate(titles)]
    rows = [_token_row(record, found) for record in records for found in record.top_differences]
    yield el("div", el("table", el("thead", el("tr", head)), el("tbody", rows), class_="small"), class_="wide")


def _token_row(record: CaseRecord, found: TopDifference) -> Element:
    expected = max(found.choices, key=lambda choice: _size(choice.expected))
    actual = max(found.choices, key=lambda choice: _size(choice.actual))
    place = str(found.position) + (f" (row {found.batch})" if len(record.pads) > 1 else "")
    cells: list[Child] = [record.runner, record.case, place]
    for choice, value in ((expected, expected.expected), (actual, actual.actual)):
        cells += [f"{choice.text} ({choice.token})", short(value, 5)]
    cells += [short(found.gap, 3), "near tie" if found.near_tie else ""]
    return el("tr", [el("td", cell, class_="n" if i in _NUMBERS else None) for i, cell in enumerate(cells)])


def _case(report: ReportRecord, records: Sequence[CaseRecord], *, unfolded: bool) -> Element:
    """One case, folded away: a row per runner, and the chart of its logits."""
    first = records[0]
    head = ("runner", "calls", "max diff", "worst position", "budget", "top-1", "verdict")
    rows = []
    for record in records:
        played = str(record.steps) if record.played == record.steps else f"{record.played} of {record.steps}"
        words = record.first_divergence.sentence if record.first_divergence else record.message
        cells = (record.runner, played, short(record.max_abs_diff), position_cell(record), budget_cell(record))
        row = [el("td", cell, class_="n" if i in (1, 2, 4) else None) for i, cell in enumerate(cells)]
        verdict = el("td", el("span", record.verdict, class_=f"tag {record.verdict}"), f" {words}" if words else None)
        style = "bad" if record.verdict != "match" else None
        rows.append(el("tr", row, el("td", top_cell(record), class_="nowrap"), verdict, class_=style))
    table = el("table", el("thead", el("tr", [el("th", title) for title in head])), el("tbody", rows))
    worst = min((record.verdict for record in records), key=("mismatch", "error", "match").index)
    summary = el(
        "summary",
        el("code", first.case),
        el("span", worst, class_=f"tag {worst}"),
        el("span", f"  {first.why}", class_="soft"),
    )
    chart = list(_known(position_chart(report.bundle, records)))
    details = el("details", summary, el("div", table, class_="wide"), chart, id=_anchor(first.question, first.case))
    if unfolded:
        details.set("open", "")
    return details


def _known(element: Element | None) -> Iterator[Element]:
    if element is not None:
        yield element


def _anchor(question: str, case: str) -> str:
    return f"{question}-{case}"


def _size(value: object) -> float:
    """A difference for sorting; what is not finite is the largest."""
    return value if isinstance(value, float) else -1.0 if value is None else math.inf
