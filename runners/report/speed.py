"""The page of ``bench --html``: milliseconds per token against context, one line per subject, and the figures."""

from __future__ import annotations

from collections.abc import Sequence

from kvparity.runners.report.charts import legend
from kvparity.runners.report.element import Element, el, to_html
from kvparity.runners.report.style import STYLE
from kvparity.runners.report.svg import LinearAxis, LogAxis, Plot

__all__ = ["SpeedRow", "speed_page"]

STYLES = 8
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_HEIGHT = 340
_WIDE = 20
SpeedRow = tuple[str, tuple[float, ...], tuple[str, ...]]


def speed_page(contexts: Sequence[int], rows: Sequence[SpeedRow], head: Sequence[str]) -> str:
    """The page as HTML text.

    Args:
        contexts: Tokens in the cache, rising.
        rows: (name, milliseconds per token by context, further cells) of every subject.
        head: Titles of the table's columns.
    """
    parts = (
        el("h1", "kvparity bench"),
        el("p", "Milliseconds per token against tokens in the cache; medians of one interleaved run."),
        _chart(contexts, rows),
        legend([name for name, _, _ in rows], band=False),
        _table(rows, head),
    )
    top = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width,initial-scale=1"),
        el("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        el("title", "kvparity: speed"),
        el("style", STYLE),
    )
    return to_html(el("html", top, el("body", el("main", list(parts))), lang="en"))


def _chart(contexts: Sequence[int], rows: Sequence[SpeedRow]) -> Element:
    """Points at the contexts and straight lines between them; a log axis where times differ by more than 20."""
    times = [value for _, values, _ in rows for value in values]
    wide = max(times) > _WIDE * min(times)
    axis = LogAxis.around(times) if wide else LinearAxis.around(times)
    plot = Plot(axis, contexts[0], contexts[-1], _HEIGHT, "milliseconds per token against context")
    plot.x_ticks(contexts, [str(context) for context in contexts], "tokens in the cache")
    for index, (_, values, _) in enumerate(rows):
        style = f"s{index % STYLES}"
        for place, value in enumerate(values):
            step = contexts[place + 1] - contexts[place] if place + 1 < len(values) else 1
            plot.line(values[place : place + 2], style, start=contexts[place], step=step)
            plot.line([value], style, start=contexts[place], dots=True)
    return plot.svg


def _table(rows: Sequence[SpeedRow], head: Sequence[str]) -> Element:
    top = el("tr", [el("th", title, class_="n" if place else None) for place, title in enumerate(head)])
    body = [el("tr", el("td", name), [el("td", cell, class_="n") for cell in cells]) for name, _, cells in rows]
    return el("table", el("thead", top), el("tbody", body))
