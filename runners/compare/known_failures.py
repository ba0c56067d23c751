"""What engines are known to get wrong, one strict file per engine: a fault that is gone is unexpected too."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path

from kvparity.exporter.contract.errors import TraceError
from kvparity.exporter.contract.spec import ExportOptions
from kvparity.runners.base import parse_runner

__all__ = ["KnownFailure", "load_known_failures", "unexpected"]

_VERDICTS = ("mismatch", "error")


@dataclass(frozen=True)
class KnownFailure:
    """One fault of one engine.

    Attributes:
        runner: Runner as on the command line; the settings that it names must be among the ones that were asked for.
        cases: Glob pattern of the cases that fail.
        verdict: What they get: ``mismatch`` or ``error``.
        reason: The fault in a sentence.
        evidence: Where it is shown: a section of docs/engines.md, or an upstream issue.
        layout: Layout of the bundle.
        profile: Profile of the bundle; empty where the fault shows in every one.
        when: Settings that the runner must report for the fault to be expected, such as the precision in force.
    """

    runner: str
    cases: str
    verdict: str
    reason: str
    evidence: str
    layout: str = "dynamic"
    profile: str = ""
    when: Mapping[str, str] = field(default_factory=dict)

    def expects(self, runner: str, options: ExportOptions, settings: Mapping[str, str], case: str) -> bool:
        """Whether this case is expected to fail."""
        mine, asked = parse_runner(self.runner), parse_runner(runner)
        same = mine.name == asked.name and mine.options.items() <= asked.options.items()
        same = same and self.layout == options.layout and self.profile in ("", options.profile)
        holds = all(settings.get(key) == value for key, value in self.when.items())
        return same and holds and fnmatchcase(case, self.cases)


def load_known_failures(folder: Path) -> tuple[KnownFailure, ...]:
    """Every entry of every ``.toml`` in a folder; a file is named like its engine.

    Raises:
        TraceError: A file is not of the format; the message names the file and the entry.
    """
    return tuple(failure for path in sorted(folder.glob("*.toml")) for failure in _read(path))


def _read(path: Path) -> Iterator[KnownFailure]:
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise TraceError(f"{path.name}: not TOML ({error})") from error
    if set(document) != {"failure"} or not document["failure"]:
        raise TraceError(f"{path.name}: holds {sorted(document)}, expected [[failure]] entries and nothing else")
    known = {item.name for item in fields(KnownFailure)}
    needed = {"runner", "cases", "verdict", "reason", "evidence"}
    for index, entry in enumerate(document["failure"]):
        place = f"{path.name}, entry {index}"
        if set(entry) - known or needed - set(entry):
            wrong = sorted(set(entry) - known) or sorted(needed - set(entry))
            raise TraceError(f"{place}: {', '.join(wrong)} unknown or missing; keys are {', '.join(sorted(known))}")
        if entry["runner"].partition(":")[0] != path.stem:
            raise TraceError(f"{place}: is about {entry['runner']}, expected {path.stem}")
        if entry["verdict"] not in _VERDICTS:
            raise TraceError(f"{place}: verdict {entry['verdict']!r}, expected one of {', '.join(_VERDICTS)}")
        yield KnownFailure(**entry)


def unexpected(
    known: tuple[KnownFailure, ...],
    runner: str,
    options: ExportOptions,
    settings: Mapping[str, str],
    verdicts: Mapping[str, str],
) -> list[str]:
    """What is not as known: new faults, and known ones that are gone. Empty where all is as expected.

    Args:
        known: Every known failure.
        runner: Runner as on the command line.
        options: How the bundle was exported.
        settings: What the runner reported.
        verdicts: Verdict by case.
    """
    lines: list[str] = []
    for case, verdict in verdicts.items():
        entry = next((item for item in known if item.expects(runner, options, settings, case)), None)
        if entry is None and verdict != "match":
            lines.append(f"{runner}, {case}: {verdict}, and no known failure says so")
        elif entry is not None and verdict != entry.verdict:
            lines.append(
                f"{runner}, {case}: {verdict}, known as {entry.verdict} ({entry.reason}); "
                "if the engine is fixed, remove the entry"
            )
    return lines
