"""What is compared: engines by name, saved traces, and sessions that the caller makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.errors import TraceError
from kvparity.runners.base import RunnerSpec, Session, parse_runner
from kvparity.runners.compare.judge import EXACT, Say
from kvparity.runners.compare.options import DEFAULT
from kvparity.runners.isolation.process import open_runner

__all__ = ["Candidate", "Candidates", "MakeSession", "candidates", "opener_of"]

MakeSession = Callable[[Bundle], Session]
Candidate = str | RunnerSpec | MakeSession
Candidates = Candidate | Sequence[Candidate]


def candidates(
    given: Candidates, traces: Sequence[str | Path] = (), say: Say = lambda line: None, names: str | None = None
) -> tuple[tuple[RunnerSpec, ...], Mapping[str, MakeSession]]:
    """Names of everything to compare, and how those are opened that are no engine of ours.

    Args:
        given: Runners as ``NAME`` or ``NAME:key=value,…``, ``all`` for every installed one, or what takes a bundle and
            gives a :class:`Session`: a class or a function. ``ort`` where there are none, and no trace.
        traces: Saved traces, each a candidate.
        say: Takes a line for each engine that ``all`` leaves out.
        names: Table of names that the traces' keys are of; None for the contract's.

    Raises:
        EngineUnavailableError: No runner has that name.
        TraceError: A runner is given twice, or is the float64 evaluation, which is a question of its own.
    """
    specs: list[RunnerSpec] = []
    makers: dict[str, MakeSession] = {}
    several = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    for item in several:
        if isinstance(item, RunnerSpec):
            specs.append(item)
        elif isinstance(item, str):
            specs += _installed(say) if item == "all" else [parse_runner(item)]
        else:
            name = getattr(item, "__name__", type(item).__name__)
            specs.append(RunnerSpec(name))
            makers[name] = item
    if any(spec.name == EXACT for spec in specs):
        raise TraceError(f"runner {EXACT!r} is not judged by the gate; --exact asks its question")
    foreign = {"names": names} if names else {}
    if names and not traces:
        raise TraceError("--names says whose names a recording's keys are; give the recording with --trace")
    specs += [RunnerSpec("trace_file", {"file": str(path), **foreign}) for path in traces]
    specs = specs or [RunnerSpec(DEFAULT)]
    for index, spec in enumerate(specs):
        if spec in specs[:index]:
            raise TraceError(f"runner {spec} is given twice")
    return tuple(specs), makers


def opener_of(makers: Mapping[str, MakeSession]) -> Callable[[Bundle, RunnerSpec], Session] | None:
    """Opens the caller's own sessions, and every other runner as usual; None where there are none of them."""
    if not makers:
        return None

    def opener(bundle: Bundle, spec: RunnerSpec) -> Session:
        make = makers.get(spec.name)
        return open_runner(bundle, spec) if make is None else make(bundle)

    return opener


def _installed(say: Say) -> list[RunnerSpec]:
    """Every engine that can be had here, PyTorch aside; absent ones are said, never passed."""
    from kvparity.runners.inspect.listing import list_runners

    rows = [row for row in list_runners() if row.name not in (EXACT, "trace_file", "torch_eager")]
    for row in rows:
        if not row.available:
            say(f"unavailable  {row.name}: {row.note}")
    return [RunnerSpec(row.name, named=False) for row in rows if row.available]
