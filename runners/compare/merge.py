"""One report of many: reports of one bundle that were made on other machines, by other engines, or case by case."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from kvparity.exporter.contract.errors import TraceError
from kvparity.runners.compare.covers import covers_of
from kvparity.runners.compare.summary import first_divergence, largest
from kvparity.runners.diff.records import (
    CaseRecord,
    Covers,
    Question,
    QuestionRecord,
    RunnerRecord,
    TensorRecord,
    worst_verdict,
)
from kvparity.runners.report.report import Report

__all__ = ["merge"]

Record = TypeVar("Record")


def merge(reports: Mapping[str, Report]) -> Report:
    """Put reports of one bundle together: every runner and every case that any of them has.

    A runner that several of them have stays one where engine, version and settings are the same and no case that both
    played came out otherwise; else it is several, named ``ort@1.32.0``, or by report where versions are equal too.

    Args:
        reports: By a name that a reader knows them by, such as the file's.

    Returns:
        One report; its verdict is the worst of them, its ``covers`` what every runner was judged on.

    Raises:
        TraceError: There is none, or they are of different bundles, or judged by different tolerances or outputs.
    """
    if not reports:
        raise TraceError("there is nothing to merge; give files that `compare --json FILE` wrote")
    _check_alike(reports)
    labels = _labels(reports)
    parts = [_renamed(report, labels[name]) for name, report in reports.items()]
    cases = _once(record for part in parts for record in part.cases)
    asked = dict.fromkeys(question.question for part in parts for question in part.questions)
    questions = tuple(_question(kind, parts, cases) for kind in asked)
    first = next((record.first_divergence for record in questions if record.first_divergence), None)
    main = [record for record in cases if record.question == questions[0].question]
    judged = {record.case for record in main}
    covers = _covers(parts, main)
    verdict = worst_verdict([_own_verdict(part) for part in parts])
    incomplete = any(part.incomplete for part in parts) and verdict == "match" and not covers.complete
    return replace(
        parts[0],
        verdict="error" if incomplete else verdict,
        runners=tuple({runner.name: runner for part in parts for runner in part.runners}.values()),
        questions=questions,
        first_divergence=first,
        cases=cases,
        tensors=_agreed([record for part in parts for record in part.tensors]),
        results=_once(record for part in parts for record in part.results),
        not_judged=tuple(dict.fromkeys(n for part in parts for n in part.not_judged if n not in judged)),
        command="\n".join(dict.fromkeys(part.command for part in parts if first is None or _has(part, first))),
        locations=tuple(found for part in parts for found in part.locations),
        reference="; ".join(dict.fromkeys(part.reference for part in parts if part.reference)),
        last_logits=any(part.last_logits for part in parts),
        covers=covers,
        incomplete=incomplete,
    )


def _own_verdict(part: Report) -> Any:
    """The verdict of a report, whether or not it covers all that was asked for."""
    return worst_verdict([question.verdict for question in part.questions]) if part.incomplete else part.verdict


def _has(part: Report, first: object) -> bool:
    return any(question.first_divergence == first for question in part.questions)


def _covers(parts: Sequence[Report], records: Sequence[CaseRecord]) -> Covers:
    """What the verdict covers: a case counts where every runner of the matrix was judged on it."""
    windows = {window for part in parts for window in (*part.covers.windows, *part.covers.windows_not_crossed)}
    found = covers_of(records, (), windows, derived_logits=any(part.covers.derived_logits for part in parts))
    return replace(found, of_cases=max(found.of_cases, *(part.covers.of_cases for part in parts)))


def _question(kind: Question, parts: Sequence[Report], cases: Sequence[CaseRecord]) -> QuestionRecord:
    """One question over all reports that asked it."""
    asked = [(part, question) for part in parts for question in part.questions if question.question == kind]
    records = [question for _, question in asked]
    said: dict[str, list[str]] = {}
    for part, question in asked:
        names = {record.runner for record in part.cases if record.question == kind}
        for note in question.notes:
            said.setdefault(note, []).append(", ".join(sorted(names)) or "none")
    return replace(
        records[0],
        verdict=worst_verdict([record.verdict for record in records]),
        needs_tol=largest([record.needs_tol for record in records]),
        needs_budget=largest([record.needs_budget for record in records]),
        first_divergence=first_divergence([record for record in cases if record.question == kind]),
        notes=tuple(note if len(who) == len(asked) else f"{'; '.join(who)}: {note}" for note, who in said.items()),
        noise=largest([record.noise for record in records]),
    )


def _check_alike(reports: Mapping[str, Report]) -> None:
    """Refuse what is no one matrix.

    Raises:
        TraceError: Names two reports and what they differ in.
    """
    first_name, first = next(iter(reports.items()))
    for name, report in reports.items():
        if not report.bundle.sha256:
            raise TraceError(
                f"{name}: does not say by a hash which bundle it judged (--allow-modified, or an earlier version of "
                "kvparity); compare again"
            )
        if report.bundle.sha256 != first.bundle.sha256:
            raise TraceError(
                f"{name}: judged bundle {report.bundle.name} (hash {report.bundle.sha256[:12]}…), {first_name} judged "
                f"{first.bundle.name} (hash {first.bundle.sha256[:12]}…); one matrix is of one bundle: copy its folder "
                "to every machine and compare again"
            )
        for what, own, other in _asked(report, first):
            if own != other:
                raise TraceError(f"{name}: judged with {what} {own}, {first_name} with {other}; judge both alike")


def _asked(report: Report, other: Report) -> Iterator[tuple[str, object, object]]:
    """What must be the same for verdicts to stand side by side: its name, and both values."""
    yield "--output", ", ".join(report.outputs) or "of all", ", ".join(other.outputs) or "of all"
    for question in report.questions:
        for same in (item for item in other.questions if item.question == question.question):
            yield "--tol" if question.question != "exact" else "--exact-tol", question.tol, same.tol
            yield "--budget", question.budget, same.budget


def _labels(reports: Mapping[str, Report]) -> dict[str, dict[str, str]]:
    """By report and name of a runner there: its name in the matrix."""
    holders: dict[str, dict[str, RunnerRecord]] = {}
    for name, report in reports.items():
        for runner in report.runners:
            holders.setdefault(runner.name, {})[name] = runner
    labels: dict[str, dict[str, str]] = {name: {} for name in reports}
    for label, found in holders.items():
        versions = {runner.version for runner in found.values()}
        for name, runner in found.items():
            if _one_runner(label, {name: reports[name] for name in found}, found):
                labels[name][label] = label
            else:
                apart = len(versions) == len(found) and runner.version
                labels[name][label] = f"{label}@{runner.version}" if apart else f"{label} ({name})"
    return labels


def _one_runner(label: str, reports: Mapping[str, Report], found: Mapping[str, RunnerRecord]) -> bool:
    """Whether a runner of several reports is the same engine, and no case came out in two ways."""
    if any(replace(runner, command="") != replace(next(iter(found.values())), command="") for runner in found.values()):
        return False
    known: dict[tuple[object, ...], CaseRecord] = {}
    for record in (record for report in reports.values() for record in report.cases if record.runner == label):
        untimed = replace(record, decode_ms=None)
        if known.setdefault(_key(record), untimed) != untimed:
            return False
    return True


def _renamed(report: Report, labels: Mapping[str, str]) -> Report:
    """The report with other names for its runners."""

    def of(record: Any) -> Any:
        """Rename the runner of any record, and in its sentence."""
        old = record.runner
        changes: dict[str, Any] = {"runner": labels[old]}
        if getattr(record, "sentence", "").startswith(f"{old} "):
            changes["sentence"] = labels[old] + record.sentence.removeprefix(old)
        if getattr(record, "first_divergence", None) is not None:
            changes["first_divergence"] = of(record.first_divergence)
        return replace(record, **changes)

    if all(old == new for old, new in labels.items()):
        return report
    questions = [
        replace(question, first_divergence=question.first_divergence and of(question.first_divergence))
        for question in report.questions
    ]
    return replace(
        report,
        runners=tuple(replace(runner, name=labels[runner.name]) for runner in report.runners),
        questions=tuple(questions),
        first_divergence=report.first_divergence and of(report.first_divergence),
        cases=tuple(map(of, report.cases)),
        tensors=tuple(map(of, report.tensors)),
        results=tuple(map(of, report.results)),
        locations=tuple(map(of, report.locations)),
    )


def _agreed(records: Sequence[TensorRecord]) -> tuple[TensorRecord, ...]:
    """Sums over cases, but for those of a runner whose cases lie in several reports: such sums cannot be added up."""
    return tuple(
        record for record in _once(iter(records)) if all(_key(r) != _key(record) or r == record for r in records)
    )


def _key(record: object) -> tuple[object, ...]:
    """What a record of a case, an output or a call is about."""
    return tuple(getattr(record, name, None) for name in ("question", "runner", "case", "step", "tensor"))


def _once(records: Iterator[Record]) -> tuple[Record, ...]:
    """The first of each."""
    found: dict[tuple[object, ...], Record] = {}
    for record in records:
        found.setdefault(_key(record), record)
    return tuple(found.values())
