"""The pictures of a report: error against position, error against layer, and the cache rows as a heat map."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kvparity.runners.diff.records import BundleRecord, CaseRecord, Curve
from kvparity.runners.report.element import Element, el
from kvparity.runners.report.svg import LogAxis, Plot, heat_map, mark_columns, thinned

__all__ = ["HEAT_LEVELS", "depth_chart", "heat_chart", "heat_level", "legend", "position_chart"]

POINTS, COLUMNS, STYLES = 480, 240, 8
HEAT_LEVELS = 12
_LIMIT_LEVEL = 9  # levels below it are half decades under the limit, from it on decades over it


def position_chart(bundle: BundleRecord, records: Sequence[CaseRecord]) -> Element | None:
    """Error of the logits against token slot, one line per runner; None where no logits were compared.

    Args:
        bundle: For the window.
        records: The same case on every runner.
    """
    found = [(index, curve) for index, record in enumerate(records) for curve in _curves(record, "logits")]
    if not found:
        return None
    total, limit = len(found[0][1].errors), records[found[0][0]].limits.get("logits")
    noise = next((curve.noise for _, curve in found if curve.noise), ())
    values = [value for _, curve in found for value in curve.errors if value is not None]
    shown = [*values, *(v for v in noise if v is not None), *([limit] if limit else [])]
    plot = Plot(LogAxis.around(shown), 0, total - 1, 300, f"error of the logits against position, {records[0].case}")
    bins, step = thinned(noise, POINTS)
    plot.band(bins, step=step)
    _ticks(plot, total)
    if bundle.window is not None and bundle.window < total and max(records[0].pads) == 0:
        plot.vertical(bundle.window, f"window {bundle.window}", "window")
    if limit:
        plot.horizontal(limit, f"limit {limit:.3g}", "limit")
    for index, curve in found:
        bins, step = thinned(curve.errors, POINTS)
        plot.line(bins, f"s{index % STYLES}", step=step)
    _mark_first(plot, records)
    return plot.svg


def _mark_first(plot: Plot, records: Sequence[CaseRecord]) -> None:
    for record in records:
        first = record.first_divergence
        if first is not None and first.tensor == "logits" and first.position is not None:
            if isinstance(first.difference, float):
                plot.point(first.position, first.difference, first.sentence)


def depth_chart(records: Sequence[CaseRecord], layers: str) -> Element | None:
    """Largest error of each layer's cache, then of the logits; one line per runner, PyTorch's own as a band.

    A cache's error is the error of what *enters* its layer, and of that layer's key and value projections.

    Args:
        records: The same case on every runner.
        layers: Kind of each layer, ``s`` or ``F``.
    """
    lines = [(index, _by_depth(record, len(layers))) for index, record in enumerate(records) if record.curves]
    if not lines:
        return None
    noise = next((_noise_by_depth(record, len(layers)) for record in records if record.curves), [])
    limits = [limit for record in records[:1] for limit in set(record.limits.values())]
    values = [v for _, line in lines for v in line if v is not None]
    axis = LogAxis.around([*values, *(v for v in noise if v is not None), *limits])
    plot = Plot(axis, -0.5, len(layers) + 0.5, 260, f"error against layer depth, {records[0].case}")
    plot.band(noise, start=0)
    labels = [f"{number}{kind}" for number, kind in enumerate(layers)] + ["logits"]
    every = max(1, math.ceil(len(labels) / 24))
    places = [i for i in range(len(labels)) if i % every == 0 or i == len(labels) - 1]
    plot.x_ticks(places, [labels[i] for i in places], "")
    if len(limits) == 1:
        plot.horizontal(limits[0], f"limit {limits[0]:.3g}", "limit")
    for index, line in lines:
        plot.line(line, f"s{index % STYLES}", dots=True, start=0)
    return plot.svg


def heat_chart(bundle: BundleRecord, record: CaseRecord) -> Element | None:
    """Error of every cache slot (rows) at every token slot (columns), in half decades below the limit.

    Args:
        bundle: For the layer kinds and the window.
        record: One case on one runner.
    """
    curves = [curve for curve in record.curves if curve.layer is not None]
    if not curves:
        return None
    limit = max(record.limits.get("key", 0.0), record.limits.get("value", 0.0))
    total = len(curves[0].errors)
    rows = [[heat_level(value, limit) for value in thinned(curve.errors, COLUMNS)[0]] for curve in curves]
    labels = [f"layer {curve.layer}{bundle.pattern[curve.layer or 0]}" for curve in curves]
    svg = heat_map(rows, labels, 18 if len(rows) <= 24 else 10, f"error of cache rows, {record.case}")
    places = _places(total)
    mark_columns(svg, [place + 0.5 for place in places], [str(place) for place in places], total, "tick")
    if bundle.window is not None and bundle.window < total and max(record.pads) == 0:
        mark_columns(svg, [bundle.window], [f"window {bundle.window}"], total, "window")
    return svg


def legend(names: Sequence[str], *, band: bool) -> Element:
    """Names of the lines, in their colours."""
    items = [el("span", el("i", class_=f"swatch s{i % STYLES}"), name) for i, name in enumerate(names)]
    if band:
        items.append(el("span", el("i", class_="swatch noise"), "PyTorch's own float32 error"))
    return el("p", items, class_="legend")


def _curves(record: CaseRecord, tensor: str) -> list[Curve]:
    return [curve for curve in record.curves if curve.tensor == tensor]


def _largest(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _by_depth(record: CaseRecord, layers: int) -> list[float | None]:
    line: list[float | None] = [None] * (layers + 1)
    for curve in record.curves:
        line[layers if curve.layer is None else curve.layer] = _largest(curve.errors)
    return line


def _noise_by_depth(record: CaseRecord, layers: int) -> list[float | None]:
    line: list[float | None] = [None] * (layers + 1)
    for curve in record.curves:
        line[layers if curve.layer is None else curve.layer] = curve.largest_noise
    return line


def heat_level(value: float | None, limit: float) -> int | None:
    """Colour of an error: 0 at a ten-thousandth of the limit or less, 8 just under it, from 9 on over it."""
    if value is None:
        return None
    if value == 0 or limit == 0:
        return 0 if value == 0 else HEAT_LEVELS - 1
    decades = math.log10(value / limit)
    if decades > 0:
        return min(_LIMIT_LEVEL + math.floor(decades), HEAT_LEVELS - 1)
    return max(_LIMIT_LEVEL - 1 + math.ceil(decades * 2), 0) if decades < 0 else _LIMIT_LEVEL - 1


def _places(total: int) -> list[int]:
    step = next((s * 10**e for e in range(7) for s in (1, 2, 5) if total / (s * 10**e) <= 12), total)
    return list(range(0, total, step))


def _ticks(plot: Plot, total: int) -> None:
    places = _places(total)
    plot.x_ticks(places, [str(place) for place in places], "token position")
