"""Writes the tables of docs/engines.md from what benchmarks/engines_matrix.py measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["write_tables"]

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "engines.md"
BEGIN, END = "<!-- begin: benchmarks/engines_matrix.py -->", "<!-- end -->"
Row = dict[str, Any]


def write_tables(rows: list[Row]) -> None:
    """Replace the part of docs/engines.md between the two marks."""
    text = DOCUMENT.read_text("utf-8")
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    body = "\n".join([*_summary(rows), "", *_cases(rows)])
    DOCUMENT.write_text(f"{head}{BEGIN}\n{body}\n{END}{tail}", encoding="utf-8")


def _summary(rows: list[Row]) -> Iterator[str]:
    titles = ["runner", "version", "layout", "cases that match", "largest difference", "ms per decode step"]
    yield f"| {' | '.join([*titles, 'adapted, known faults'])} |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        good = sum(verdict == "match" for verdict in row["verdicts"].values())
        count = f"{good} of {len(row['verdicts'])}" if row["verdicts"] else "–"
        took = f"{row['milliseconds']:.1f}" if row["milliseconds"] is not None else "–"
        faults = [f"known: {reason}" for reason in row.get("known", ())] + row.get("unexpected", [])[:1]
        remark = row["unavailable"] or "; ".join(filter(None, [row["adapted"], *faults]))
        cells = [f"`{row['runner']}`", row["version"], row["layout"], count, _largest(row), took, remark]
        yield f"| {' | '.join(cells)} |"


def _largest(row: Row) -> str:
    numbers = [float(value) for value in row["differences"].values() if value is not None]
    if not numbers:
        return "–"
    worst = max(numbers, key=lambda value: (value != value, value))
    return f"{worst:.1e}"


def _cases(rows: list[Row]) -> Iterator[str]:
    """Runner by case: the power of ten of the largest difference, ✗ a mismatch, ! an error."""
    names = max((list(row["verdicts"]) for row in rows), key=len, default=[])
    yield "<details><summary>Every case: largest difference as a power of ten, ✗ mismatch, ! error</summary>"
    yield ""
    yield "| case | " + " | ".join(f"{row['runner']} {row['layout'][0]}" for row in rows) + " |"
    yield "|---" * (len(rows) + 1) + "|"
    for name in names:
        yield f"| {name} | " + " | ".join(_cell(row, name) for row in rows) + " |"
    yield ""
    yield "</details>"


def _cell(row: Row, case: str) -> str:
    verdict = row["verdicts"].get(case)
    if verdict is None:
        return ""
    if verdict == "error":
        return "!"
    value = row["differences"].get(case)
    size = "" if value is None else f"{float(value):.0e}".replace("e-0", "e-")
    return size if verdict == "match" else f"✗ {size}"
