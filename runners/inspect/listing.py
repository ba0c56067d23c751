"""What can be had here: runners with their engines' versions, cases, metrics, families, packages."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvparity.exporter.contract.errors import KvparityError
from kvparity.runners.base import RunnerSpec, engine_names, load_engine
from kvparity.runners.isolation.process import describe_isolated, interpreter

__all__ = ["RunnerRow", "list_cases", "list_families", "list_metrics", "list_packages", "list_runners"]


@dataclass(frozen=True)
class RunnerRow:
    """One runner: installed with a version, or absent with the install line."""

    name: str
    available: bool
    version: str
    note: str
    takes: str = ""


def list_runners() -> tuple[RunnerRow, ...]:
    """Every runner, installed or not; an engine with an environment of its own is asked there."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        return tuple(pool.map(_row, engine_names()))


def _row(name: str) -> RunnerRow:
    try:
        engine = load_engine(name)
    except ImportError as error:
        return RunnerRow(name, False, "", f"{error.name or error} is not installed")
    try:
        own = getattr(engine, "OWN_PROCESS", False) or interpreter(name, {}) == sys.executable
        info = engine.describe() if own else describe_isolated(RunnerSpec(name))
    except KvparityError as error:
        return RunnerRow(name, False, "", str(error), engine.TAKES)
    settings = ", ".join(f"{key} {value}" for key, value in info.settings.items())
    summary = (engine.__doc__ or "").strip().splitlines()[0] if engine.__doc__ else ""
    return RunnerRow(name, True, info.version, settings or summary, engine.TAKES)


def list_families() -> tuple[tuple[str, str], ...]:
    """(model type, what was measured) of every architecture: that it matches, with its layers, or why it does not.

    The rows are those of docs/architectures.md.
    """
    rows = json.loads(Path(__file__).with_name("architectures.json").read_text(encoding="utf-8"))
    return tuple((row["name"], _family_note(row)) for row in rows)


def _family_note(row: dict[str, Any]) -> str:
    if row["outcome"] != "match":
        return f"{row['outcome']}: {row['reason']}"
    return f"match: {row['architecture']}, layers {row['pattern']}, {row['slots']} cache slots"


def list_cases() -> tuple[tuple[str, str], ...]:
    """(name, why) of the schedule for the shipped checkpoint's window of 128."""
    from kvparity.exporter.contract.schedule import default_cases
    from kvparity.exporter.contract.spec import LayerSpec, ModelSpec

    layers = tuple(LayerSpec(i, "sliding" if i % 3 < 2 else "full", 128 if i % 3 < 2 else None, i) for i in range(6))
    model = ModelSpec("", "", 1024, 160, 5, layers, (), 1024, 0, "float32", True, 0, (1,), 2)
    return tuple((case.name, case.why) for case in default_cases(model, range(800)))


def list_metrics() -> tuple[tuple[str, str], ...]:
    """(name, what it is) of every metric."""
    from kvparity.runners.diff import metrics

    return tuple(
        (metric.name, f"{metric.title}, {metric.unit}, {metric.better} is better") for metric in metrics.METRICS
    )


def list_packages() -> tuple[tuple[str, str], ...]:
    """(name, the tool's own name) of every package layout."""
    from kvparity.exporter.contract.package import load_layout, package_names

    return tuple((name, load_layout(name).TOOL) for name in package_names())
