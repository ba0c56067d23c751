"""What judging costs: `compare` of a bundle beside the same calls run in ONNX Runtime and thrown away.

``python -m benchmarks.compare_cost BUNDLE [--case PATTERN]`` starts each in a process of its own, one after the other:
the calls alone, `compare` without what an earlier one remembers of the files' hashes, and `compare` again. Clock,
processor time, peak memory and the ratio of each to the calls alone, whose time includes loading.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from kvparity.exporter.contract.bundle import Bundle
from kvparity.runners.base import RunnerSpec
from kvparity.runners.decode.play import play
from kvparity.runners.isolation.process import open_runner
from kvparity.runners.reference.source import select_cases

__all__ = ["run_alone"]

ROOT = Path(__file__).resolve().parents[1]


def run_alone(root: Path, patterns: tuple[str, ...]) -> int:
    """Plays the cases and drops every result; the number of positions."""
    bundle = Bundle.open(root)
    session = open_runner(bundle, RunnerSpec("ort"))
    positions = 0
    for entry in select_cases(bundle, patterns):
        for result in play(bundle, session, bundle.case(entry.name)):
            positions += result.inputs["input_ids"].size
    session.close()
    return positions


def _measured(words: list[str], cache: str) -> tuple[float, float, float, str]:
    """Seconds, processor seconds, peak megabytes and the first line that a command prints."""
    started = time.perf_counter()
    environment = {**os.environ, "XDG_CACHE_HOME": cache}
    process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, _, used = os.wait4(process.pid, 0)
    spent = used.ru_utime + used.ru_stime
    return time.perf_counter() - started, spent, used.ru_maxrss / 1000, said.splitlines()[0] if said else ""


@click.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--case", "cases", multiple=True, help="Cases whose names match; all of them by default.")
@click.option("--alone", is_flag=True, hidden=True)
def main(bundle: Path, cases: tuple[str, ...], alone: bool) -> None:
    """Print one line for each way."""
    if alone:
        print(run_alone(bundle, cases), "positions")
        return
    chosen = [word for case in cases for word in ("--case", case)]
    ways = {
        "calls alone": [sys.executable, "-m", "benchmarks.compare_cost", str(bundle), "--alone", *chosen],
        "compare": [sys.executable, "cli.py", "compare", str(bundle), *chosen],
        "compare again": [sys.executable, "cli.py", "compare", str(bundle), *chosen],
    }
    first: tuple[float, float] | None = None
    with tempfile.TemporaryDirectory() as cache:
        for name, words in ways.items():
            clock, spent, memory, said = _measured(words, cache)
            first = first or (clock, spent)
            print(
                f"{name:14} {clock:7.1f} s ({clock / first[0]:.2f} x)  {spent:7.1f} processor s "
                f"({spent / first[1]:.2f} x)  {memory:6.0f} MB  {said}",
                flush=True,
            )


if __name__ == "__main__":
    main()
