"""The ``compare`` command: judge a bundle, write the reports that were asked for, give the exit code."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.errors import BundleError, TraceError
from kvparity.exporter.contract.files import write_whole
from kvparity.exporter.contract.model_files import open_tokenizer
from kvparity.runners.base import RunnerSpec, parse_runner
from kvparity.runners.compare.judge import EXACT, Say, judge
from kvparity.runners.compare.options import DEFAULT, JudgeOptions
from kvparity.runners.diff.records import Report

__all__ = ["EXIT_CODES", "Outputs", "compare", "parse_tolerance"]

EXIT_CODES = {"match": 0, "mismatch": 1, "error": 2}


@dataclass(frozen=True)
class Outputs:
    """Files to write; ``json`` may be ``-`` for stdout, which then holds nothing else."""

    json: str | None = None
    html: Path | None = None
    junit: Path | None = None
    markdown: Path | None = None
    model_explorer: Path | None = None


def parse_tolerance(text: str) -> float | Literal["auto"]:
    """``auto``, or a finite number of at least 0.

    Raises:
        ValueError: Anything else.
    """
    if text == "auto":
        return "auto"
    value = float(text)
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{text} is not a tolerance")
    return value


def runner_specs(names: tuple[str, ...], traces: tuple[Path, ...]) -> tuple[RunnerSpec, ...]:
    """Runners named on the command line, and one per trace; ``ort`` where there are none, ``all`` for all installed.

    Raises:
        EngineUnavailableError: No runner has that name.
        TraceError: A runner is given twice, or is the float64 evaluation, which is a question of its own.
    """
    specs = [spec for name in names for spec in (_installed() if name == "all" else [parse_runner(name)])]
    if any(spec.name == EXACT for spec in specs):
        raise TraceError(f"runner {EXACT!r} is not judged by the gate; --exact asks its question")
    specs += [RunnerSpec("trace_file", {"file": str(path)}) for path in traces]
    specs = specs or [RunnerSpec(DEFAULT)]
    for index, spec in enumerate(specs):
        if spec in specs[:index]:
            raise TraceError(f"runner {spec} is given twice")
    return tuple(specs)


def _installed() -> list[RunnerSpec]:
    """Every engine that can be had here, PyTorch aside; absent ones are named on stderr, never passed."""
    from kvparity.runners.inspect.listing import list_runners

    rows = [row for row in list_runners() if row.name not in (EXACT, "trace_file", "torch_eager")]
    for row in rows:
        if not row.available:
            print(f"unavailable  {row.name}: {row.note}", file=sys.stderr)
    return [RunnerSpec(row.name, named=False) for row in rows if row.available]


def compare(root: Path, options: JudgeOptions, outputs: Outputs) -> int:
    """Judge a bundle and report.

    Args:
        root: The bundle's folder.
        options: What to ask.
        outputs: What to write beside the text.

    Returns:
        0 match, 1 mismatch, 2 could not tell.
    """
    bundle = Bundle.open(root, allow_modified=options.allow_modified)
    with _progress() as say:
        report = judge(bundle, replace(options, timed=len(options.runners) > 1), say)
    for path, render in _writers(outputs, bundle):
        _write(path, render(report))
    if outputs.json == "-":
        from kvparity.runners.report.json_file import json_report

        sys.stdout.write(json_report(report))
    else:
        from kvparity.runners.report.text import print_report

        print_report(report, sys.stdout)
    return EXIT_CODES[report.verdict]


def _writers(outputs: Outputs, bundle: Bundle) -> Iterator[tuple[Path, Callable[[Report], str]]]:
    """File and the function that makes its text, for each report that was asked for."""
    if outputs.json not in (None, "-"):
        from kvparity.runners.report.json_file import json_report

        yield Path(str(outputs.json)), json_report
    if outputs.junit is not None:
        from kvparity.runners.report.junit import junit_report

        yield outputs.junit, junit_report
    if outputs.markdown is not None:
        from kvparity.runners.report.markdown import markdown_report

        yield outputs.markdown, markdown_report
    if outputs.html is not None:
        from kvparity.runners.report.html import html_report

        yield outputs.html, lambda report: html_report(report, token_text(bundle))
    if outputs.model_explorer is not None:
        from kvparity.runners.report.model_explorer import model_explorer_report

        yield outputs.model_explorer, lambda report: model_explorer_report(report, bundle)


def token_text(bundle: Bundle) -> Callable[[int], str]:
    """Gives a token's text where the bundle has a tokenizer, and its number where it has not."""
    try:
        tokenizer = open_tokenizer(bundle.root / "tokenizer.json")
    except BundleError:  # missing or foreign; a report needs no text
        return lambda token: f"token {token}"
    return lambda token: repr(tokenizer.decode([token], skip_special_tokens=False))


def _write(path: Path, text: str) -> None:
    try:
        write_whole(path, text)
    except OSError as error:
        raise TraceError(f"{path}: cannot be written ({error.strerror}); choose another place") from error


@contextmanager
def _progress() -> Iterator[Say]:
    """What is being played, on stderr: a status line on a terminal, one line per runner elsewhere."""
    if sys.stderr.isatty():
        from rich.console import Console

        with Console(stderr=True).status("comparing") as status:
            yield status.update
        return
    seen: set[str] = set()

    def say(line: str) -> None:
        runner = line.split("  ")[0]
        if runner not in seen:
            seen.add(runner)
            print(f"comparing {runner}", file=sys.stderr)

    yield say
