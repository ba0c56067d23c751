"""Opens runners, plays cases, and asks the diff: makes the report of one ``compare``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from kvparity.exporter.contract.bundle import Bundle, CaseEntry
from kvparity.exporter.contract.errors import BundleError, KvparityError, NotTakenError, TraceError
from kvparity.runners.base import CaseSession, RunnerInfo, RunnerSpec, Session
from kvparity.runners.compare.expectations import (
    Wanted,
    auto_limits,
    case_noise,
    dtype_of,
    fixed_limits,
    recorded_dtypes,
    step_expectations,
)
from kvparity.runners.compare.identities import Identity, Played, identities, judge_identity, play_whole, shown_case
from kvparity.runners.compare.options import JudgeOptions, command_of, label_of, runner_command
from kvparity.runners.compare.peers import check_same_model, judge_peer, peer_limits
from kvparity.runners.compare.summary import Answer, failed_case, make_report
from kvparity.runners.compare.timing import Timed
from kvparity.runners.compare.token_text import with_token_text
from kvparity.runners.decode.play import StepResult, play
from kvparity.runners.diff.budget import Noise, stored_in
from kvparity.runners.diff.collect import CaseDiff, Collector
from kvparity.runners.diff.gate import compare_outputs
from kvparity.runners.diff.location import Location
from kvparity.runners.diff.records import Question, RunnerRecord
from kvparity.runners.engines.trace_file import TraceSession, TraceWriter
from kvparity.runners.isolation.process import open_runner
from kvparity.runners.reference.source import References, select_cases
from kvparity.runners.report.report import Report

__all__ = ["EXACT", "JudgeOptions", "judge"]

EXACT = "exact"
_TOL = 1e-4
_FOREIGN_EXACT_TOL = 1e-4  # factors and epsilons of other exporters are float32 numbers: about 1e-6 of a value
Say = Callable[[str], None]
Opener = Callable[[Bundle, RunnerSpec], Session]


def judge(bundle: Bundle, options: JudgeOptions, say: Say = lambda line: None, opener: Opener | None = None) -> Report:
    """Answer every question that was asked.

    Args:
        bundle: An opened bundle.
        options: What to ask.
        say: Takes one line of progress at a time.
        opener: Opens a runner; :func:`runners.isolation.process.open_runner` where None.

    Raises:
        KvparityError: The request itself makes no sense: no such case, two runners for one trace file.
    """
    if options.save_trace and len(options.runners) != 1:
        raise TraceError(f"--save-trace takes one runner; {len(options.runners)} were given")
    if not options.identities:
        chosen = {entry.name for entry in select_cases(bundle, options.cases)}
        missing = [name for name in bundle.missing_cases() if name in chosen]
        if missing and not options.allow_modified:
            raise BundleError(
                f"{bundle.root}: the vectors of {', '.join(missing[:3])}{' …' if missing[3:] else ''} are missing; "
                "restore the files, or pass --allow-modified to judge the other cases"
            )
    _check_outputs(bundle, options)
    tol, options = _tolerance(bundle, options), _exactness(bundle, options)
    if options.against is not None:
        return _peer_report(bundle, options, tol, say, opener or open_runner)
    float64 = options.exact or options.locate or tol == "auto"
    live = options.live or options.checkpoint is not None
    with References(bundle, live=live, float64=float64, checkpoint=options.checkpoint) as references:
        asked = _Asked(bundle, options, tol, say, opener or open_runner, references)
        answers = [asked.self() if options.identities else asked.gate()]
        if options.exact:
            answers.append(asked.exact())
        report = make_report(
            bundle,
            answers,
            tuple(asked.not_judged),
            lambda first: command_of(options, first),
            options.outputs,
            references.sentence,
            "" if options.allow_modified else bundle.manifest.sha256,
        )
        report = replace(
            report,
            last_logits=asked.last_logits or bundle.options.logits == "last",
            runners=tuple(_with_dtypes(runner, asked.recorded.get(runner.name, ())) for runner in report.runners),
        )
        if options.require_complete and report.verdict == "match" and not report.covers.complete:
            report = replace(report, verdict="error", incomplete=True)
        report = with_token_text(bundle, report)
        return replace(report, locations=asked.locations(report)) if options.locate else report


def _peer_report(
    bundle: Bundle, options: JudgeOptions, tol: float | Literal["auto"], say: Say, opener: Opener
) -> Report:
    """Every runner against a recording, or against another bundle."""
    assert options.against is not None
    with References(bundle, live=False, float64=False) as references:
        asked = _Asked(bundle, options, tol, say, opener, references)
        answer = asked.against()
    names = {result.tensor for case in answer.cases for result in case.results}
    every = {"logits", *(f"present.{slot.slot}.{part}" for slot, part in bundle.model.cache_names())}
    outputs = options.outputs or (tuple(sorted(names)) if names and names < every else ())
    sha256 = "" if options.allow_modified else bundle.manifest.sha256
    reference = (
        label_of(options.against) if isinstance(options.against, RunnerSpec) else f"bundle {options.against.name}"
    )
    report = make_report(bundle, [answer], (), lambda first: command_of(options, first), outputs, reference, sha256)
    if options.require_complete and report.verdict == "match" and not report.covers.complete:
        report = replace(report, verdict="error", incomplete=True)
    return report


def _tolerance(bundle: Bundle, options: JudgeOptions) -> float | Literal["auto"]:
    """The tolerance that was given; else PyTorch's own error where that is known, 1e-4 where it is not."""
    if options.tol is not None:
        return options.tol
    live = (options.live or options.checkpoint is not None) and not options.identities
    return "auto" if live or bundle.manifest.noise else _TOL


def _exactness(bundle: Bundle, options: JudgeOptions) -> JudgeOptions:
    """Where no tolerance of float64 was given and the graphs are another exporter's, one that their factors allow."""
    default = options.exact_tol == JudgeOptions.exact_tol and bundle.manifest.foreign is not None
    return replace(options, exact_tol=_FOREIGN_EXACT_TOL) if default else options


@dataclass
class _Asked:
    """One ``compare``: what all its questions share."""

    bundle: Bundle
    options: JudgeOptions
    tol: float | Literal["auto"]
    say: Say
    opener: Opener
    references: References
    not_judged: list[str] = field(default_factory=list)
    last_logits: bool = False
    recorded: dict[str, set[str]] = field(default_factory=dict)  # by runner: float types that are not the contract's

    def gate(self) -> Answer:
        """Every runner against PyTorch."""
        options = self.options
        entries = self._judgeable()
        answer = Answer("gate", self.tol, options.budget)
        for spec in options.runners:
            spec = _with_case(spec, entries)
            with self._session(spec, answer) as (label, session), self._writer(session) as writer:
                timed = Timed(session) if session and not isinstance(session, CaseSession) and options.timed else None
                for entry in entries if session else ():
                    assert session is not None
                    self.say(f"{label}  {entry.name}")
                    diff = self._case("gate", label, timed or session, entry, writer)
                    record = replace(diff.record, decode_ms=timed.take()) if timed else diff.record
                    answer.cases.append(replace(diff, record=record))
        return answer

    def locations(self, report: Report) -> tuple[Location, ...]:
        """Where every runner's first divergence begins."""
        from kvparity.runners.locate.entry import locate

        entries = {entry.name: entry for entry in self.bundle.manifest.cases}
        specs = {label_of(spec): spec for spec in self.options.runners}
        self.say("locating")
        vectors = lambda case: self.references.whole(entries[case])  # noqa: E731
        return locate(self.bundle, report, specs, vectors, self.opener, self.references.origin)

    def exact(self) -> Answer:
        """The graphs evaluated in float64 against PyTorch in float64."""
        answer = Answer("exact", self.options.exact_tol, None)
        with self._session(RunnerSpec(EXACT), answer) as (label, session):
            for entry in self._judgeable() if session else ():
                assert session is not None
                self.say(f"{label}  {entry.name}")
                answer.cases.append(self._case("exact", label, session, entry, None))
        return answer

    def self(self) -> Answer:
        """Every runner against itself."""
        options = self.options
        known = identities(self.bundle.model, self.bundle.options)
        chosen = [item for item in known if _matches(item.name, options.cases)]
        if not chosen:
            names = ", ".join(item.name for item in known)
            raise BundleError(f"no identity matches {', '.join(options.cases)}; identities are {names}")
        limits = self._self_limits()
        answer = Answer("self", self.tol, options.budget)
        for spec in options.runners:
            with self._session(spec, answer) as (label, session):
                played: dict[str, Played] = {}
                for item in chosen if session else ():
                    assert session is not None
                    self.say(f"{label}  {item.name}: {item.why}")
                    answer.cases.append(self._identity(label, session, item, played, limits))
        return answer

    def against(self) -> Answer:
        """Every runner against a recording, or against itself on another bundle."""
        given, options = self.options.against, self.options
        entries = select_cases(self.bundle, options.cases)
        if isinstance(given, RunnerSpec):
            other, spec = self.bundle, _with_case(given, entries)
        else:
            other, spec = Bundle.open(given or Path(), allow_modified=options.allow_modified), None
            check_same_model(self.bundle, other)
        limits = fixed_limits(self.tol) if self.tol != "auto" else peer_limits((self.bundle, other), options.budget)
        question: Question = "bundle" if spec is None else "recording"
        answer = Answer(question, self.tol, options.budget)
        for runner in options.runners:
            with (
                self._session(_with_case(runner, entries), answer) as (label, session),
                closing(self.opener(other, spec or runner)) as peer,
            ):
                cases = [self.bundle.case(entry.name) for entry in entries]
                if isinstance(peer, TraceSession) and not options.cases:
                    cases = [case for case in cases if case.name in peer.cases]
                for case in cases if session else ():
                    assert session is not None
                    self.say(f"{label}  {case.name}")
                    sides = (self.bundle, session), (other, peer)
                    chosen = lambda name: _matches(name, options.outputs)  # noqa: E731
                    answer.cases.append(judge_peer(question, label, sides, case, limits, chosen))
        return answer

    def _self_limits(self) -> dict[str, float]:
        """Two runs may each be off by the budget, so that they may differ by twice that."""
        options = self.options
        if self.tol != "auto":
            return fixed_limits(self.tol)
        return peer_limits((self.bundle, self.bundle), options.budget)

    def _judgeable(self) -> list[CaseEntry]:
        entries = select_cases(self.bundle, self.options.cases)
        missing = self.bundle.missing_cases()
        left = [entry for entry in entries if entry.name not in missing and self.references.has(entry)]
        self.not_judged[:] = [entry.name for entry in entries if entry not in left]
        self.references.prepare(left)
        return left

    @contextmanager
    def _session(self, spec: RunnerSpec, answer: Answer) -> Iterator[tuple[str, Session | None]]:
        """Open a runner and record it; None where it cannot be opened, which is an error and not a pass."""
        label = label_of(spec)
        try:
            session = self.opener(self.bundle, spec)
        except Exception as error:  # an engine may raise anything; the other runners go on
            required = spec.named or not isinstance(error, NotTakenError)
            answer.runners.append(_unavailable(label, spec, self._message(error), required=required))
            yield label, None
            return
        try:
            answer.runners.append(replace(_record(label, session.info), command=runner_command(self.options, spec)))
            yield label, session
        finally:
            session.close()

    @contextmanager
    def _writer(self, session: Session | None) -> Iterator[TraceWriter | None]:
        path = self.options.save_trace
        if path is None or session is None:
            yield None
            return
        with TraceWriter(path, f"{session.info.name} {session.info.version}") as writer:
            yield writer

    def _case(
        self,
        question: Question,
        label: str,
        session: Session,
        entry: CaseEntry,
        writer: TraceWriter | None,
    ) -> CaseDiff:
        """One case; whatever goes wrong in it is that case's error, and the others go on."""
        exact = question == "exact"
        try:
            vectors = self.references.vectors(entry)
            dtypes = self._recorded(label, session, entry.name)
            noise = {
                kind: stored_in(own, dtype_of(self.bundle, kind), dtypes.get(kind, "float64"), self.options.budget)
                for kind, own in case_noise(self.bundle, vectors).items()
            }
            limits = self._limits(question, entry.name, noise)
            if (exact or self.tol == "auto") and not vectors.has_float64:
                vectors.float64()  # raises, and says what to do
        except Exception as error:
            return failed_case(question, label, entry, f"reference: {self._reference_message(error)}")
        wanted = Wanted(
            "float64" if exact or self.tol == "auto" else "float32", "float64" if exact else None, dtypes=dtypes
        )
        float64 = wanted.against == "float64"
        own = {} if exact else noise
        collector = Collector(question, label, vectors.case, self.bundle.model, limits, own, float64=float64)
        results = play(self.bundle, session, vectors.case)
        while True:
            try:
                result = next(results, None)
                if result is None:
                    return collector.finish()
                last = isinstance(session, CaseSession) and _last_only(result)
                self.last_logits |= last
                every = step_expectations(self.bundle, vectors, result.step, limits, replace(wanted, last=last))
                expected = [item for item in every if _matches(item.name, self.options.outputs)]
                judged = {name: array for name, array in result.outputs.items() if _matches(name, self.options.outputs)}
                collector.add(result.step, compare_outputs(judged, expected), judged, expected)
            except Exception as error:  # an engine may raise anything; the other cases go on
                return collector.finish(self._message(error))
            if writer is not None:
                writer.add(entry.name, result.step, result.outputs)

    def _recorded(self, label: str, session: Session, case: str) -> dict[str, str]:
        """Float types of a recording that are not the contract's, by output kind."""
        found = recorded_dtypes(self.bundle, session.dtypes(case) if isinstance(session, CaseSession) else {})
        self.recorded.setdefault(label, set()).update(found.values())
        return found

    def _limits(self, question: Question, case: str, noise: Mapping[str, Noise]) -> dict[str, float]:
        options = self.options
        if question == "exact":
            return fixed_limits(options.exact_tol)
        return auto_limits(noise, options.budget, case) if self.tol == "auto" else fixed_limits(self.tol)

    def _identity(
        self, label: str, session: Session, item: Identity, played: dict[str, Played], limits: Mapping[str, float]
    ) -> CaseDiff:
        key = f"{item.base.name} {item.base.chunks}"
        try:
            if key not in played:
                played[key] = play_whole(self.bundle, session, item.base)
            return judge_identity(self.bundle, session, item, played[key], limits, label)
        except Exception as error:
            return failed_case("self", label, shown_case(item), self._message(error))

    def _reference_message(self, error: Exception) -> str:
        """One line; what is no message of ours comes of vectors that do not fit the model, or of PyTorch."""
        if isinstance(error, KvparityError):
            return self._message(error)
        reason = self._message(error).partition(": ")[2] or self._message(error)
        if self.options.live:
            return f"PyTorch cannot run the model ({reason}); restore the bundle's files"
        return f"the recorded vectors do not fit the model ({reason}); restore the file, or export again"

    def _message(self, error: Exception) -> str:
        """One line that names no folder of this machine."""
        text = str(error) if isinstance(error, KvparityError) else f"{type(error).__name__}: {error}"
        line = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
        return line.replace(str(self.bundle.root.absolute()), "BUNDLE").replace(str(self.bundle.root), "BUNDLE")


def _check_outputs(bundle: Bundle, options: JudgeOptions) -> None:
    """Every pattern of ``--output`` names an output of the graphs, so that a typing error never judges nothing."""
    if options.outputs and options.identities:
        raise BundleError("--output selects what is compared with PyTorch; --self compares a runner with itself")
    known = ["logits", *(f"present.{slot.slot}.{part}" for slot, part in bundle.model.cache_names())]
    for pattern in options.outputs:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise BundleError(f"{bundle.root}: no output matches {pattern!r}; outputs are {', '.join(known)}")


def _last_only(result: StepResult) -> bool:
    """Whether a call of several tokens recorded the logits of one position, which is the last one's then."""
    logits = result.outputs.get("logits")
    return logits is not None and logits.ndim == 3 and logits.shape[1] == 1 < result.step.tokens


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


def _with_case(spec: RunnerSpec, entries: Sequence[CaseEntry]) -> RunnerSpec:
    """Tell a trace whose keys name no case that it is the one selected."""
    if spec.name == "trace_file" and len(entries) == 1:
        return replace(spec, options={**spec.options, "case": entries[0].name})
    return spec


def _record(label: str, info: RunnerInfo) -> RunnerRecord:
    return RunnerRecord(label, info.name, info.version, dict(info.settings), info.adapted)


def _with_dtypes(runner: RunnerRecord, found: Collection[str]) -> RunnerRecord:
    """The runner, saying what it was recorded in where that is not what the contract has."""
    said = {"recorded in": " and ".join(sorted(found))} if found else {}
    return replace(runner, settings={**runner.settings, **said})


def _unavailable(label: str, spec: RunnerSpec, message: str, *, required: bool) -> RunnerRecord:
    return RunnerRecord(label, spec.name, "", {}, available=False, message=message, required=required)
