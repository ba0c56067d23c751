"""Draws what run.py measured: milliseconds per token against context, one line per peer, as one SVG file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

__all__ = ["draw"]

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 420, 56, 250, 34, 44
OURS = ("#b3202c", "#d9730d", "#8a5a00")
OTHERS = ("#1f6fb2", "#2a8f6a", "#6f4fa8", "#5b6770", "#0f8b8d", "#9c5b7a", "#4a4a4a", "#7a8b00")
STEPS = (1, 2, 5)


def draw(lines: Mapping[str, Sequence[float]], contexts: Sequence[int], title: str) -> str:
    """An SVG document.

    Args:
        lines: Milliseconds by peer, one per context; ours are named ``kvparity…``.
        contexts: Tokens in the cache, rising.
        title: Above the drawing.
    """
    values = [value for line in lines.values() for value in line]
    ticks = _ticks(min(values), max(values))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
        f"<style>text {{ font-size: 12px }}</style><title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="20" style="font-size: 14px">{escape(title)}</text>',
    ]
    for tick in ticks:
        y = _y(tick, ticks)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#555555">{tick:g}</text>')
    for context in contexts:
        x = _x(context, contexts)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 26}" text-anchor="middle" fill="#555555">{context}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle" fill="#555555">tokens in the cache</text>')
    heights = _apart({name: _y(line[-1], ticks) for name, line in lines.items()})
    colours = {True: iter(OURS * len(lines)), False: iter(OTHERS * len(lines))}
    for name, line in lines.items():
        ours = name.startswith("kvparity")
        colour, width = next(colours[ours]), 2.6 if ours else 1.6
        places = [(_x(context, contexts), _y(value, ticks)) for context, value in zip(contexts, line, strict=True)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{width}"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        label = f"{escape(name)}  {line[0]:.2f} → {line[-1]:.2f}"
        parts.append(f'<text x="{WIDTH - RIGHT + 12}" y="{heights[name] + 4:.1f}" fill="{colour}">{label}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten around the values."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [step * 10.0**decade for decade in decades for step in STEPS]
    first = max(tick for tick in every if tick <= low)
    last = min(tick for tick in every if tick >= high)
    return [tick for tick in every if first <= tick <= last]


def _y(value: float, ticks: Sequence[float]) -> float:
    """Logarithmic: equal ratios are equally far apart."""
    span = math.log(ticks[-1] / ticks[0]) or 1.0
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * math.log(value / ticks[0]) / span


def _x(context: int, contexts: Sequence[int]) -> float:
    span = contexts[-1] - contexts[0] or 1
    return LEFT + 14 + (WIDTH - LEFT - RIGHT - 28) * (context - contexts[0]) / span


def _apart(heights: Mapping[str, float], gap: float = 15.0) -> dict[str, float]:
    """Labels at least ``gap`` apart, each as near to its line as that allows, the lowest first."""
    placed: dict[str, float] = {}
    above = float(HEIGHT - BOTTOM) + gap
    for name, height in sorted(heights.items(), key=lambda item: -item[1]):
        above = min(height, above - gap)
        placed[name] = above
    return placed
