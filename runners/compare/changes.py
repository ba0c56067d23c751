"""What changed between two reports: an engine's upgrade, a new export, or another engine, judged case by case."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from kvparity.runners.diff.records import CaseRecord, Question, RunnerRecord, Verdict
from kvparity.runners.report.report import Report
from kvparity.runners.report.words import short, times

__all__ = ["Change", "Changes", "changes"]

Kind = Literal["worse", "better", "other", "new", "gone", "same"]
_KINDS: tuple[Kind, ...] = ("worse", "better", "other", "new", "gone")
_GROWTH = 2.0  # an error within the limit is worth a line where it grew by more


@dataclass(frozen=True)
class Change:
    """One case of one runner in both reports.

    Attributes:
        kind: ``worse`` (it matched, and no longer does), ``better`` (the other way round), ``other`` (mismatch became
            error, or the other way round), ``new``, ``gone`` or ``same``.
        question: ``gate``, ``exact``, ``self`` or ``against``.
        runner: The runner, as the newer report names it.
        case: The case.
        old: Verdict before; null where it was not judged.
        new: Verdict now; null where it is not judged.
        detail: Why it does not match now, or what grew.
        growth: Largest difference now over the one before; null where either is none.
    """

    kind: Kind
    question: Question
    runner: str
    case: str
    old: Verdict | None
    new: Verdict | None
    detail: str = ""
    growth: float | None = None


@dataclass(frozen=True)
class Changes:
    """All changes between two reports; ``print(changes)`` shows what the command line shows.

    Attributes:
        verdict: ``mismatch`` where something became worse, ``error`` where nothing was judged in both, else ``match``.
        items: Every case of every runner of either report.
        sentence: The answer in one line.
        notes: What else a reader should know: other versions, another bundle, errors that grew within the limit.
    """

    verdict: Verdict
    items: tuple[Change, ...]
    sentence: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join([self.sentence, *(f"  {line}" for line in self._lines()), *self.notes])

    def _lines(self) -> Iterator[str]:
        for kind in _KINDS:
            for item in self.items:
                if item.kind == kind:
                    was, now = (verdict or "not judged" for verdict in (item.old, item.new))
                    detail = f": {item.detail}" if item.detail else ""
                    yield f"{kind:<6} {item.runner}, {item.question}, {item.case}: {was} -> {now}{detail}"


def changes(old: Report, new: Report) -> Changes:
    """Compare two reports case by case.

    Runners are paired by name; where each report has a single runner that the other has not, these are a pair too, so
    that two engines or two recordings can be held against each other. A case that matched and whose runner could not be
    opened now is worse, not gone.

    Args:
        old: The report before.
        new: The report now.
    """
    names = _pairs(old, new)
    before = {(r.question, names.get(r.runner, r.runner), r.case): r for r in old.cases}
    now = {(r.question, r.runner, r.case): r for r in new.cases}
    closed = {runner.name: runner for runner in new.runners if not runner.available}
    items = tuple(_change(key, before.get(key), now.get(key), closed) for key in dict.fromkeys([*now, *before]))
    worse = [item for item in items if item.kind == "worse"]
    both = [item for item in items if item.old and item.new]
    verdict: Verdict = "mismatch" if worse else "match" if both else "error"
    return Changes(verdict, items, _sentence(items, worse, both), tuple(_notes(old, new, names, items)))


def _pairs(old: Report, new: Report) -> dict[str, str]:
    """By name of a runner in the old report: its name in the new one."""
    own = [[r.name for r in report.runners if r.name != "exact"] for report in (old, new)]
    left = [name for name in own[0] if name not in own[1]]
    right = [name for name in own[1] if name not in own[0]]
    paired = dict(zip(left, right, strict=True)) if len(left) == len(right) == 1 else {}
    return {**{name: name for name in own[0]}, **paired}


def _change(
    key: tuple[Question, str, str],
    old: CaseRecord | None,
    new: CaseRecord | None,
    closed: Mapping[str, RunnerRecord],
) -> Change:
    question, runner, case = key
    was = old.verdict if old else None
    now = new.verdict if new else None
    if new is None and old is not None and runner in closed:
        kind: Kind = "worse" if was == "match" else "other"
        return Change(kind, question, runner, case, was, None, closed[runner].message)
    if old is None or new is None:
        return Change("new" if old is None else "gone", question, runner, case, was, now, _reason(new))
    if was == now:
        grown = _growth(old, new) if now == "match" else None
        return Change("same", question, runner, case, was, now, "", grown)
    kind = "worse" if was == "match" else "better" if now == "match" else "other"
    return Change(kind, question, runner, case, was, now, _reason(new))


def _reason(record: CaseRecord | None) -> str:
    """Why a case does not match."""
    if record is None or record.verdict == "match":
        return ""
    return record.message or (record.first_divergence.sentence if record.first_divergence else "")


def _growth(old: CaseRecord, new: CaseRecord) -> float | None:
    sizes = (old.max_abs_diff, new.max_abs_diff)
    before, now = (value if isinstance(value, float) else 0.0 for value in sizes)
    return now / before if before and now else None


def _sentence(items: tuple[Change, ...], worse: list[Change], both: list[Change]) -> str:
    if not both and not worse:
        return "COULD NOT TELL  no case of any runner is in both reports"
    counts = [(kind, sum(item.kind == kind for item in items)) for kind in _KINDS]
    told = ", ".join(f"{count} {'changed otherwise' if kind == 'other' else kind}" for kind, count in counts if count)
    told = f"{told or 'nothing changed'}; {sum(item.kind == 'same' for item in items)} as before"
    if not worse:
        return f"NOT WORSE  {told}"
    first = worse[0]
    return f"WORSE  {told}; first: {first.runner}, {first.case}: {first.detail or first.new}"


def _notes(old: Report, new: Report, names: Mapping[str, str], items: tuple[Change, ...]) -> Iterator[str]:
    known = {runner.name: runner for runner in new.runners}
    for runner in old.runners:
        other = known.get(names.get(runner.name, runner.name))
        if other is not None and (runner.engine, runner.version) != (other.engine, other.version):
            yield f"{other.name}: {runner.engine} {runner.version} -> {other.engine} {other.version}"
    if old.bundle.sha256 != new.bundle.sha256:
        yield f"The bundles differ: {old.bundle.name} and {new.bundle.name} have not the same files."
    if (old.tol, old.outputs) != (new.tol, new.outputs):
        was, now = (f"tolerance {r.tol}, outputs {', '.join(r.outputs) or 'all'}" for r in (old, new))
        yield f"Judged differently: {was}; now {now}."
    grown = max((item for item in items if item.growth), key=lambda item: item.growth or 0, default=None)
    if grown is not None and (grown.growth or 0) > _GROWTH:
        record = next(
            r for r in new.cases if (r.question, r.runner, r.case) == (grown.question, grown.runner, grown.case)
        )
        yield (
            f"Within the limit, but the error grew most in {grown.runner}, {grown.case}: "
            f"{times(grown.growth or 0)} × what it was, {short(record.max_abs_diff)} now."
        )
