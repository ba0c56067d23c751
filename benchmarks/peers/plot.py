"""Draws what run.py measured: milliseconds per token against context, one line per peer, as one SVG file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["draw", "spread"]

OURS = ("#b3202c", "#d9730d", "#8a5a00")
OTHERS = ("#1f6fb2", "#2a8f6a", "#6f4fa8", "#5b6770", "#0f8b8d", "#9c5b7a", "#4a4a4a", "#7a8b00", "#274060", "#8f2d8f")
APART = 0.055  # between two labels, of the axis, which is logarithmic


def draw(lines: Mapping[str, Sequence[float]], contexts: Sequence[int], title: str, path: Path) -> None:
    """Write the plot.

    Args:
        lines: Milliseconds by peer, one per context; ours are named ``kvparity…``.
        contexts: Tokens in the cache, rising.
        title: Above the drawing.
        path: The SVG file; the same bytes for the same lines.
    """
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "kvparity"
    matplotlib.rcParams["svg.fonttype"] = "none"
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.subplots()
    colours = {True: iter(OURS), False: iter(OTHERS)}
    axes.set_yscale("log")
    ordered = sorted(lines.items(), key=lambda item: item[1][-1])
    logs = [math.log(value) for line in lines.values() for value in line]
    heights = spread([math.log(line[-1]) for _, line in ordered], APART * (max(logs) - min(logs)))
    for (name, line), height in zip(ordered, heights, strict=True):
        ours = name.startswith("kvparity")
        colour = next(colours[ours], "#000000")
        axes.plot(contexts, line, marker="o", markersize=4, linewidth=2.5 if ours else 1.5, color=colour)
        axes.annotate(
            f"{name} {line[0]:.2f} → {line[-1]:.2f}",
            (contexts[-1], math.exp(height)),
            xytext=(10, 0),
            textcoords="offset points",
            va="center",
            color=colour,
        )
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.set_xticks(list(contexts))
    axes.set_xlabel("tokens in the cache")
    axes.set_title(title, loc="left")
    axes.grid(visible=True, axis="y", which="both", color="#dddddd")
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Heights of labels at least ``gap`` apart, each group around the middle of what it labels.

    Args:
        values: Where labels belong, rising.
        gap: The smallest distance of two.

    Returns:
        Their heights, in the same order.
    """
    groups: list[list[float]] = []
    for value in values:
        groups.append([value])
        while len(groups) > 1 and _middle(groups[-1]) - _middle(groups[-2]) < gap * sum(map(len, groups[-2:])) / 2:
            groups[-2:] = [groups[-2] + groups[-1]]
    return [_middle(group) + gap * (at - (len(group) - 1) / 2) for group in groups for at in range(len(group))]


def _middle(group: Sequence[float]) -> float:
    return sum(group) / len(group)
