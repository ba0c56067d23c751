"""What one ``compare`` is asked, and the same as the words of a command."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kvparity.exporter.contract.errors import TraceError
from kvparity.runners.spec import RunnerSpec

if TYPE_CHECKING:
    from kvparity.runners.diff.records import Divergence

__all__ = ["DEFAULT", "JudgeOptions", "command_of", "label_of", "runner_command"]

DEFAULT = "ort"


@dataclass(frozen=True)
class JudgeOptions:
    """What to compare, and how strictly.

    Attributes:
        runners: Candidates.
        cases: Case name or glob pattern, or an identity's with ``identities``; all where none is given.
        outputs: Output or glob pattern, as ``logits``; all where none is given.
        tol: Largest difference that passes, or ``auto``: ``budget`` times PyTorch's own float32 error; where none is
            given, ``auto`` where float64 references are recorded, else 1e-4.
        budget: With tolerance ``auto``: multiple of PyTorch's own float32 error that passes.
        live: Run PyTorch now instead of reading recorded vectors.
        checkpoint: Run PyTorch now, with the checkpoint that is here.
        exact: Also compare the graphs in float64 with PyTorch in float64.
        exact_tol: Largest difference that passes in float64; 1e-10 means 1e-4 for another exporter's package.
        identities: Compare each runner with itself instead: chunks, padding, reruns.
        against: Compare each runner with this instead: a recording as a runner, or the folder of another bundle.
        locate: Find the layer, operator and position where a difference begins, and whose fault it is.
        save_trace: Save what the runner returned to this file; one runner only.
        require_complete: Not a match, but exit code 2, where a case was not judged or a window not crossed.
        allow_modified: Judge files that differ from the manifest.
        shown_bundle: The bundle as the reader typed it, for the same.
        program: How this program is called, for the same.
        timed: Whether to time decode calls; what is timed has not the same bytes twice.
    """

    runners: tuple[RunnerSpec, ...]
    cases: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    tol: float | Literal["auto"] | None = None
    budget: float = 4.0
    live: bool = False
    checkpoint: Path | None = None
    exact: bool = False
    exact_tol: float = 1e-10
    identities: bool = False
    against: RunnerSpec | Path | None = None
    locate: bool = False
    save_trace: Path | None = None
    require_complete: bool = False
    allow_modified: bool = False
    shown_bundle: str = "BUNDLE"
    program: str = "python cli.py"
    timed: bool = False

    def __post_init__(self) -> None:
        fixed = () if self.tol is None or self.tol == "auto" else (self.tol,)
        numbers = (self.budget, self.exact_tol, *fixed)
        if not all(math.isfinite(value) and value >= 0 for value in numbers):
            raise TraceError(f"tolerances and budget must be finite and at least 0; found {numbers}")
        asked = {"--self": self.identities, "--exact": self.exact, "--locate": self.locate, "--live": self.live}
        asked["--checkpoint"] = self.checkpoint is not None
        if self.against is not None and (wrong := [flag for flag, on in asked.items() if on]):
            raise TraceError(
                f"{', '.join(wrong)} ask about PyTorch, or a runner itself; leave them out to compare two sides"
            )


def label_of(spec: RunnerSpec) -> str:
    """How a report names a runner; a trace is named by its file, without the folder."""
    if spec.name == "trace_file":
        return f"trace:{Path(spec.options.get('file', '')).name}"
    return str(spec)


def command_of(options: JudgeOptions, first: Divergence | None) -> str:
    """The command that narrows a divergence to its runner and case, or repeats this one where there is none.

    Where there is nothing left to narrow, it asks for the page that shows the case in pictures.
    """
    words = [_compare(options), *_strictness(options)]
    runners, cases = [_runner_words(spec) for spec in options.runners if str(spec) != DEFAULT], list(options.cases)
    if first is not None:
        named = [spec for spec in options.runners if label_of(spec) == first.runner]
        narrow = [_runner_words(spec) for spec in named if str(spec) != DEFAULT], [first.case]
        if narrow == (runners, cases):
            words.append("--html report.html")
        if not options.locate and not options.identities and options.against is None:
            words.append("--locate")
        runners, cases = narrow
    return " ".join(words + runners + [f"--case {shlex.quote(case)}" for case in cases])


def runner_command(options: JudgeOptions, spec: RunnerSpec) -> str:
    """The command that repeats one runner on every case."""
    words = [_compare(options), *_strictness(options)]
    return " ".join(words + ([] if str(spec) in (DEFAULT, "exact") else [_runner_words(spec)]))


def _compare(options: JudgeOptions) -> str:
    """The command and what it is given."""
    words = f"{options.program} compare {options.shown_bundle}"
    if isinstance(options.against, RunnerSpec):
        return f"{words} --against-{_runner_words(options.against).removeprefix('--')}"
    return words if options.against is None else f"{words} {shlex.quote(str(options.against))}"


def _strictness(options: JudgeOptions) -> Iterator[str]:
    if options.tol is not None:
        yield f"--tol {options.tol if options.tol == 'auto' else f'{options.tol:g}'}"
    if options.budget != JudgeOptions.budget:
        yield f"--budget {options.budget:g}"
    if options.exact:
        yield "--exact" + (f" --exact-tol {options.exact_tol:g}" if options.exact_tol != JudgeOptions.exact_tol else "")
    if options.checkpoint is not None:
        yield f"--checkpoint {shlex.quote(str(options.checkpoint))}"
    yield from (f"--output {shlex.quote(pattern)}" for pattern in options.outputs)
    flags = {
        "--live": options.live,
        "--self": options.identities,
        "--require-complete": options.require_complete,
        "--allow-modified": options.allow_modified,
    }
    yield from (flag for flag, on in flags.items() if on)


def _runner_words(spec: RunnerSpec) -> str:
    if spec.name == "trace_file":
        names = f" --names {spec.options['names']}" if "names" in spec.options else ""
        return f"--trace {shlex.quote(Path(spec.options.get('file', '')).name)}{names}"
    return f"--runner {shlex.quote(str(spec))}"
