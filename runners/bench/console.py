"""What ``bench`` prints: a table, or JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvparity.runners.bench.bench import Measure, Times
from kvparity.runners.bench.options import BenchOptions
from kvparity.runners.report.report import write_text

__all__ = ["as_json", "print_measures", "table"]


def print_measures(measures: Sequence[Measure], options: BenchOptions, json_file: str | None = None) -> None:
    """Print the table; or JSON where ``json_file`` is ``-``, which is otherwise a file that it is written to too."""
    text = json.dumps(as_json(measures, options), indent=1) + "\n"
    if json_file == "-":
        sys.stdout.write(text)
        return
    if json_file:
        write_text(Path(json_file), text)
    print(table(measures, options))


def table(measures: Sequence[Measure], options: BenchOptions) -> str:
    """A plain text table; ratios are to the fastest at that context."""
    rows = _cells(measures, options)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _cells(measures: Sequence[Measure], options: BenchOptions) -> list[list[str]]:
    """The table: titles, then one row per subject."""
    best = {context: min(m.decode[context].median for m in measures) for context in options.contexts}
    header = ["", *(f"ms @{context}" for context in options.contexts), f"prefill {options.prefill} tok/s"]
    rows = [[*header, "load s", "memory MB", "cache B/token full + sliding"]]
    for item in measures:
        cells = [item.name]
        for context in options.contexts:
            times = item.decode[context]
            spread = f"{times.low * 1000:.3f}–{times.high * 1000:.3f}"
            cells.append(f"{times.median * 1000:.3f} ({spread}) {times.median / best[context]:.2f}x")
        cells += [f"{options.prefill / item.prefill.median:.0f}", f"{item.load:.2f}", f"{item.memory_mb:.0f}"]
        cells.append(" + ".join(str(item.cache_bytes.get(kind, 0)) for kind in ("full", "sliding")))
        rows.append(cells)
    return rows


def as_json(measures: Sequence[Measure], options: BenchOptions) -> dict[str, Any]:
    """The measures as plain data, times in milliseconds."""

    def times(item: Times) -> dict[str, float]:
        return {name: round(getattr(item, name) * 1000, 5) for name in ("median", "low", "high")}

    return {
        "schema_version": 1,
        "contexts": list(options.contexts),
        "prefill_tokens": options.prefill,
        "results": [
            {
                "name": item.name,
                "load_s": round(item.load, 3),
                "memory_mb": round(item.memory_mb, 1),
                "prefill_ms": times(item.prefill),
                "decode_ms": {str(context): times(item.decode[context]) for context in options.contexts},
                "cache_bytes_per_token": dict(item.cache_bytes),
            }
            for item in measures
        ],
    }
