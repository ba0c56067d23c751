"""What ``compare`` prints: its progress on stderr, the report on stdout."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from kvparity.runners.compare.judge import Say
from kvparity.runners.report.report import Report

__all__ = ["print_report", "progress"]


@contextmanager
def progress() -> Iterator[Say]:
    """What is being played, on stderr: a status line on a terminal, one line per runner elsewhere."""
    if sys.stderr.isatty():
        from rich.console import Console

        console = Console(stderr=True)
        with console.status("comparing") as status:
            yield lambda line: console.print(line, markup=False) if _is_news(line) else status.update(line)
        return
    seen: set[str] = set()

    def say(line: str) -> None:
        runner = line.split("  ")[0]
        if _is_news(line):
            print(line, file=sys.stderr)
        elif runner not in seen:
            seen.add(runner)
            print(f"comparing {runner}", file=sys.stderr)

    yield say


def _is_news(line: str) -> bool:
    """Whether a line stays true after the next one."""
    return line.startswith("unavailable")


def print_report(report: Report, form: str = "text") -> None:
    """Print the report: for people, with every case where ``verbose``, or a format of files and nothing else."""
    if form not in ("text", "verbose"):
        sys.stdout.write(report.text(form))
        return
    from kvparity.runners.report.text import print_report as print_text

    print_text(report, sys.stdout, verbose=form == "verbose")
