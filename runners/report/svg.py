"""Small charts as inline SVG: axes, lines, bands and heat maps; colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kvparity.runners.report.element import Element, el

__all__ = ["LogAxis", "Plot", "heat_map", "mark_columns", "thinned"]

Values = Sequence[float | None]
WIDTH, LEFT, RIGHT, TOP, BOTTOM = 1040, 64, 16, 26, 34


@dataclass(frozen=True)
class LogAxis:
    """Decades from ``low`` to ``high``; zero and everything below sit on the lowest line."""

    low: int
    high: int

    @staticmethod
    def around(values: Sequence[float]) -> LogAxis:
        """The decades that hold all positive values, at least three and at most twelve."""
        positive = [value for value in values if value > 0 and math.isfinite(value)]
        low = math.floor(math.log10(min(positive))) if positive else -9
        high = math.ceil(math.log10(max(positive))) if positive else -6
        high = max(high, low + 3)
        return LogAxis(max(low, high - 12), high)

    def share(self, value: float) -> float:
        """Where a value is, 0 at the bottom, 1 at the top."""
        if value <= 0:
            return 0.0
        if not math.isfinite(value):
            return 1.0
        return min(max((math.log10(value) - self.low) / (self.high - self.low), 0.0), 1.0)

    def ticks(self) -> list[tuple[float, str]]:
        """Values of the grid lines, and their labels."""
        decades = range(self.low, self.high + 1)
        return [(10.0**decade, f"1e{decade}" if decade > self.low else f"≤1e{decade}") for decade in decades]


class Plot:
    """One chart: x from ``first`` to ``last``, y on a log axis.

    Args:
        axis: The y axis.
        first: Value at the left edge.
        last: Value at the right edge.
        height: Of the whole drawing.
        label: What it shows, for people who cannot see it.
    """

    def __init__(self, axis: LogAxis, first: float, last: float, height: int, label: str) -> None:
        self._axis, self._first, self._last, self._height = axis, first, max(last, first + 1), height
        self.svg = el("svg", viewBox=f"0 0 {WIDTH} {height}", role="img", aria_label=label, class_="plot")
        self._grid()

    def x(self, value: float) -> float:
        """Pixel of an x value."""
        return LEFT + (value - self._first) / (self._last - self._first) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Pixel of a y value."""
        bottom = self._height - BOTTOM
        return bottom - self._axis.share(value) * (bottom - TOP)

    def _grid(self) -> None:
        for value, label in self._axis.ticks():
            y = _n(self.y(value))
            self.svg.append(el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
            self.svg.append(el("text", label, x=LEFT - 8, y=_n(self.y(value) + 4), class_="tick end"))

    def x_ticks(self, values: Sequence[float], labels: Sequence[str], title: str) -> None:
        """Ticks below the chart, and what they count."""
        for value, label in zip(values, labels, strict=True):
            self.svg.append(el("text", label, x=_n(self.x(value)), y=self._height - BOTTOM + 16, class_="tick mid"))
        self.svg.append(el("text", title, x=WIDTH - RIGHT, y=self._height - 4, class_="tick end"))

    def line(self, values: Values, style: str, *, start: float = 0.0, step: float = 1.0, dots: bool = False) -> None:
        """A line through ``values`` at x = start, start + step, …; None breaks it."""
        points = [(start + i * step, value) for i, value in enumerate(values)]
        path = _path([(self.x(x), None if value is None else self.y(value)) for x, value in points])
        self.svg.append(el("path", d=path, class_=f"line {style}"))
        for x, value in points if dots else ():
            if value is not None:
                dot = el("circle", el("title", f"{value:.3g}"), cx=_n(self.x(x)), cy=_n(self.y(value)), r=4)
                dot.set("class", f"dot {style}")
                self.svg.append(dot)

    def band(self, values: Values, *, start: float = 0.0, step: float = 1.0) -> None:
        """Everything from the bottom up to ``values``."""
        bottom = float(self._height - BOTTOM)
        for first, run in _runs(values):
            edge = [(self.x(start + (first + i) * step), self.y(value)) for i, value in enumerate(run)]
            edge = [(edge[0][0], bottom), *edge, (edge[-1][0], bottom)]
            self.svg.append(el("path", d=_path(edge) + "Z", class_="band"))

    def vertical(self, value: float, label: str, style: str) -> None:
        """A marked x value."""
        _upright(self.svg, self.x(value), self._height - BOTTOM, label, style)

    def horizontal(self, value: float, label: str, style: str) -> None:
        """A marked y value."""
        y = self.y(value)
        self.svg.append(el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=_n(y), y2=_n(y), class_=f"mark {style}"))
        self.svg.append(el("text", label, x=WIDTH - RIGHT - 4, y=_n(y - 5), class_=f"tick end {style}"))

    def point(self, x: float, y: float, label: str) -> None:
        """A ringed point."""
        ring = el("circle", el("title", label), cx=_n(self.x(x)), cy=_n(self.y(y)), r=6, class_="ring")
        self.svg.append(ring)


def thinned(values: Values, count: int) -> tuple[list[float | None], float]:
    """At most ``count`` values, each the largest of its bin, and how many values a bin holds."""
    if len(values) <= count:
        return list(values), 1.0
    size = len(values) / count
    bins: list[float | None] = []
    for index in range(count):
        part = [v for v in values[int(index * size) : int((index + 1) * size)] if v is not None]
        bins.append(max(part) if part else None)
    return bins, size


def _runs(values: Values) -> list[tuple[int, list[float]]]:
    """Stretches without None: first index and values."""
    runs: list[tuple[int, list[float]]] = []
    for index, value in enumerate(values):
        if value is None:
            continue
        if runs and runs[-1][0] + len(runs[-1][1]) == index:
            runs[-1][1].append(value)
        else:
            runs.append((index, [value]))
    return runs


def _path(points: Sequence[tuple[float, float | None]]) -> str:
    words, pen = [], "M"
    for x, y in points:
        if y is None:
            pen = "M"
            continue
        words.append(f"{pen}{_n(x)} {_n(y)}")
        pen = "L"
    if len(words) == 1:
        words.append("h0.1")  # a lone point still draws its line cap
    return "".join(words)


def _n(value: float) -> str:
    """A pixel, to a tenth."""
    return f"{value:.1f}".removesuffix(".0")


def cells(rows: Sequence[Sequence[int | None]], height: int, top: int = TOP) -> dict[int, str]:
    """Path data of a heat map's cells by level; neighbours of one level are one rectangle."""
    paths: dict[int, list[str]] = {}
    for number, row in enumerate(rows):
        width = (WIDTH - LEFT - RIGHT) / max(len(row), 1)
        start = 0
        for index in range(1, len(row) + 1):
            if index < len(row) and row[index] == row[start]:
                continue
            level = row[start]
            if level is not None:
                x, y = LEFT + start * width, top + number * height
                span = f"M{_n(x)} {y}h{_n((index - start) * width)}v{height - 2}h-{_n((index - start) * width)}z"
                paths.setdefault(level, []).append(span)
            start = index
    return {level: "".join(parts) for level, parts in sorted(paths.items())}


def heat_map(rows: Sequence[Sequence[int | None]], labels: Sequence[str], height: int, label: str) -> Element:
    """A heat map of levels; one row per label, x ticks left to the caller."""
    total = TOP + len(rows) * height + BOTTOM
    svg = el("svg", viewBox=f"0 0 {WIDTH} {total}", role="img", aria_label=label, class_="plot")
    for level, path in cells(rows, height).items():
        svg.append(el("path", d=path, class_=f"heat h{level}"))
    for number, text in enumerate(labels):
        svg.append(el("text", text, x=LEFT - 8, y=TOP + number * height + height // 2 + 3, class_="tick end"))
    return svg


def mark_columns(svg: Element, values: Sequence[float], labels: Sequence[str], last: float, style: str) -> None:
    """Marks at x values of a heat map whose right edge is ``last``: ticks below, or a line with its label above."""
    bottom = int(svg.get("viewBox", "0 0 0 0").split()[3]) - BOTTOM
    for value, label in zip(values, labels, strict=True):
        x = LEFT + value / last * (WIDTH - LEFT - RIGHT)
        if style == "tick":
            svg.append(el("text", label, x=_n(x), y=bottom + 16, class_="tick mid"))
            continue
        _upright(svg, x, bottom, label, style)


def _upright(svg: Element, x: float, bottom: float, label: str, style: str) -> None:
    """A vertical mark; its label stands on the side where there is room."""
    svg.append(el("line", x1=_n(x), x2=_n(x), y1=TOP - 8, y2=_n(bottom), class_=f"mark {style}"))
    side, end = (-5, " end") if x > WIDTH * 0.85 else (5, "")
    svg.append(el("text", label, x=_n(x + side), y=TOP - 12, class_=f"tick {style}{end}"))
