"""Makes a report of what the questions found: verdicts, sums over cases, notes, and the command that comes next."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from kvparity.exporter.contract.bundle import Bundle, CaseEntry
from kvparity.exporter.contract.cases import Case
from kvparity.exporter.contract.features import unproven
from kvparity.runners.compare.covers import covers_of
from kvparity.runners.compare.options import JudgeOptions
from kvparity.runners.diff.budget import Noise, add64, budget_of
from kvparity.runners.diff.collect import CaseDiff
from kvparity.runners.diff.metrics import Totals, finish, merge
from kvparity.runners.diff.names import kind_of, slot_of
from kvparity.runners.diff.records import (
    SCHEMA_VERSION,
    BundleRecord,
    CaseRecord,
    Divergence,
    Number,
    Question,
    QuestionRecord,
    RunnerRecord,
    TensorRecord,
    Verdict,
    number,
    worst_verdict,
)
from kvparity.runners.report.report import Report
from kvparity.runners.report.words import times

__all__ = ["Answer", "failed_case", "first_divergence", "largest", "make_report"]

Command = Callable[[Divergence | None], str]
_TITLES: Mapping[Question, str] = {
    "gate": "Does every runner compute what PyTorch computes?",
    "exact": "Is the exported graph, in float64, the model in float64?",
    "self": "Does every runner agree with itself, however the tokens are cut?",
    "recording": "Does every runner compute what was recorded elsewhere?",
    "bundle": "Does every runner compute the same from both bundles?",
}


@dataclass
class Answer:
    """What one question gathered while it ran."""

    question: Question
    tol: float | Literal["auto"]
    budget: float | None
    runners: list[RunnerRecord] = field(default_factory=list)
    cases: list[CaseDiff] = field(default_factory=list)

    @property
    def verdict(self) -> Verdict:
        """The worst of all cases; a runner that was asked for and could not be opened is an error."""
        absent: list[Verdict] = ["error" for runner in self.runners if not runner.available and runner.required]
        return worst_verdict(absent + [case.record.verdict for case in self.cases])


def failed_case(question: Question, runner: str, entry: CaseEntry | Case, message: str) -> CaseDiff:
    """A case that could not be judged."""
    return CaseDiff(
        CaseRecord(
            question=question,
            runner=runner,
            case=entry.name,
            why=entry.why,
            verdict="error",
            steps=len(entry.chunks),
            played=0,
            chunks=entry.chunks,
            pads=(0,) * entry.batch,
            starts=tuple(move.start for move in entry.moves),
            compared=0,
            padded_slots=0,
            rows=(0, 0),
            limits={},
            message=message,
        )
    )


def make_report(
    bundle: Bundle,
    answers: Sequence[Answer],
    not_judged: tuple[str, ...],
    command: Command,
    outputs: tuple[str, ...] = (),
    reference: str = "",
    sha256: str = "",
) -> Report:
    """The report of one ``compare``.

    Args:
        bundle: The bundle that was judged.
        answers: One per question, the main one first.
        not_judged: Cases that had no reference.
        command: Gives the command that narrows a divergence, or repeats a match.
        outputs: Glob patterns of the outputs that were judged; empty where all were.
        reference: What the runners were compared with, in words.
        sha256: Hash of what was judged; empty where files may differ from the manifest.
    """
    blame = _blame(answers)
    questions = tuple(_question(bundle, answer, not_judged, outputs, blame, reference) for answer in answers)
    first = next((record.first_divergence for record in questions if record.first_divergence), None)
    runners = {runner.name: runner for answer in answers for runner in answer.runners}
    return Report(
        schema_version=SCHEMA_VERSION,
        verdict=worst_verdict([record.verdict for record in questions]),
        tol=answers[0].tol,
        bundle=replace(_bundle(bundle), sha256=sha256),
        runners=tuple(runners.values()),
        questions=questions,
        first_divergence=first,
        cases=tuple(case.record for answer in answers for case in answer.cases),
        tensors=tuple(record for answer in answers for record in _tensors(bundle, answer)),
        results=tuple(result for answer in answers for case in answer.cases for result in case.results),
        not_judged=not_judged,
        command=command(first),
        outputs=outputs,
        reference=reference,
        covers=covers_of(
            [case.record for case in answers[0].cases],
            [entry.name for entry in bundle.manifest.cases],
            bundle.model.windows,
            derived_logits=bundle.manifest.head is not None,
        ),
    )


def _reference(answer: Answer, reference: str) -> str:
    if answer.question == "self":
        return "none, each runner is compared with itself, so that a weight in the wrong place is not seen"
    return reference


def _question(
    bundle: Bundle, answer: Answer, not_judged: Sequence[str], outputs: Sequence[str], blame: str, reference: str
) -> QuestionRecord:
    records = [case.record for case in answer.cases]
    return QuestionRecord(
        question=answer.question,
        title=_TITLES[answer.question],
        tol=answer.tol,
        budget=answer.budget if answer.tol == "auto" else None,
        verdict=answer.verdict,
        needs_tol=largest([record.needs_tol for record in records if record.compared]),
        needs_budget=largest([number(b.ratio_max) for record in records for b in record.budget.values()]),
        first_divergence=first_divergence(records),
        notes=(
            f"Reference: {_reference(answer, reference)}.",
            *_notes(bundle, answer, not_judged, outputs),
            *([blame] if blame and answer.question == "exact" else []),
        ),
        noise=largest([own.largest for own in _noise(answer.cases).values()]),
    )


def first_divergence(records: Sequence[CaseRecord]) -> Divergence | None:
    """First runner that diverges; of its cases, the earliest call, then the lowest slot, then the lowest layer."""
    found = [record.first_divergence for record in records if record.first_divergence]
    if not found:
        return None

    def key(record: Divergence) -> tuple[int, int, float]:
        position = -1 if record.position is None else record.position
        return record.step, position, math.inf if record.layer is None else record.layer

    return min((record for record in found if record.runner == found[0].runner), key=key)


def largest(values: Sequence[Number | None]) -> Number | None:
    """The largest of some numbers; None where one is missing or none is there."""
    found = max((value if isinstance(value, float) else math.inf for value in values), default=math.inf)
    return found if math.isfinite(found) else None


def _rounding(answer: Answer) -> float | None:
    """The largest multiple of PyTorch's own error where that alone may explain a mismatch at a fixed tolerance."""
    failed = [case.record for case in answer.cases if case.record.verdict != "match"]
    if answer.question != "gate" or answer.tol == "auto" or not failed:
        return None
    valued = all(record.budget and isinstance(record.needs_tol, float) and not record.message for record in failed)
    worst = largest([number(kind.ratio_max) for record in failed for kind in record.budget.values()])
    return worst if valued and isinstance(worst, float) and worst <= JudgeOptions.budget else None


def _notes(bundle: Bundle, answer: Answer, not_judged: Sequence[str], outputs: Sequence[str]) -> Iterator[str]:
    records = [case.record for case in answer.cases]
    noise = _noise(answer.cases)
    if answer.verdict == "mismatch" and (line := bundle.manifest.near_tie_line()):
        yield f"{line[0].upper()}{line[1:]}."
    below = {kind: own.largest for kind, own in noise.items() if answer.tol != "auto" and answer.tol < own.largest}
    if below and answer.question == "gate":
        sizes = ", ".join(f"{kind} {size:.2g}" for kind, size in below.items())
        yield (
            f"The tolerance {answer.tol:g} is below PyTorch's own float32 error on these cases ({sizes}): "
            "a mismatch at it cannot tell a fault from rounding; --tol auto judges against float64 instead."
        )
    elif rounding := _rounding(answer):
        yield (
            f"Every difference is at most {times(rounding)} × PyTorch's own float32 error: rounding can do that; "
            "--tol auto judges against float64."
        )
    if outputs and answer.question != "self":
        yield f"Judged: {', '.join(outputs)}; no other output was looked at (--output)."
    if answer.tol == "auto" and answer.question == "gate":
        yield f"Judged against PyTorch in float64; the limit is {answer.budget:g} × its own float32 error in each case."
    yield from _sources(bundle, answer, records)
    padded = sum(record.padded_slots for record in records)
    if padded:
        yield f"{_count(padded, 'padded slot')} checked for finiteness only: nobody's contract says what they hold."
    flips, ties = sum(record.flips for record in records), sum(record.near_ties for record in records)
    if flips:
        yield f"The likeliest token differs at {_count(flips, 'position')}; near ties within the limit: {ties}."
    yield from _quantised(bundle, answer)
    if not_judged and answer.question in ("gate", "exact"):
        missing = bundle.missing_cases()
        gone, unrecorded = ([n for n in not_judged if (n in missing) is there] for there in (True, False))
        if gone:
            yield f"Not judged, because their files are missing: {', '.join(gone)}."
        if unrecorded:
            yield f"Not judged, because no vectors were recorded (--live judges them): {', '.join(unrecorded)}."
    if bundle.options.logits == "last":
        yield "The graphs return the logits of each call's last position; no other position was compared."


def _sources(bundle: Bundle, answer: Answer, records: Sequence[CaseRecord]) -> Iterator[str]:
    """Where the reference is not what PyTorch returned, but a sample of it or made from it."""
    if answer.question not in ("gate", "exact"):
        return
    if bundle.manifest.head is not None:
        yield (
            "The reference's logits are rebuilt in float64 from the hidden states that PyTorch computed, with the "
            "head's weights in the bundle, every row of which was checked against the checkpoint's own head."
        )
        wrong = [] if (head := bundle.known_head) is None else head.wrong.tolist()
        if wrong:
            yield (
                f"{_count(len(wrong), 'row')} of the head in the bundle's weights (first: token {wrong[0]}) "
                "differ from the checkpoint's: their logits can match nothing, but where PyTorch's own were recorded."
            )
    judged, there = (sum(record.rows[index] for record in records) for index in (0, 1))
    if judged < there:
        strides = sorted({sequence.stride for sequence in bundle.manifest.sequences if sequence.stride > 1})
        yield (
            f"Cache rows: {judged:,} of {there:,} judged: those around slot 0, the windows, the calls' edges and the "
            f"end, and one in {' or '.join(map(str, strides))} between; logits at every position."
        )


def _quantised(bundle: Bundle, answer: Answer) -> Iterator[str]:
    """What the reference of a quantised bundle is, and what quantisation itself cost."""
    found = bundle.manifest.quantization
    if found is None or answer.question != "gate":
        return
    yield "Conversion is judged here: against PyTorch with the values that the quantised weights stand for."
    if found.quality is not None:
        yield f"Quantisation itself, against the weights as they were: {found.quality.sentence()}."
    if bundle.options.accuracy_level:
        yield (
            "Accuracy level 4 rounds activations to int8, block by block, here and in PyTorch alike; "
            "--exact judges the graph without it."
        )


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + ("" if number == 1 else "s")


def _blame(answers: Sequence[Answer]) -> str:
    """Whose fault a mismatch with PyTorch is, where exactness was asked too."""
    verdicts = {answer.question: answer.verdict for answer in answers}
    if verdicts.get("exact") == "mismatch":
        return "An export fault: the graph itself, evaluated in float64, is not the model."
    if verdicts.get("exact") == "match" and verdicts.get("gate") == "mismatch":
        return "An engine fault, or rounding: the graph itself, evaluated in float64, is the model."
    return ""


def _noise(cases: Sequence[CaseDiff]) -> dict[str, Noise]:
    noise: dict[str, Noise] = {}
    for case in cases:
        for kind, own in case.noise.items():
            noise[kind] = noise[kind].merge(own) if kind in noise else own
    return noise


def _tensors(bundle: Bundle, answer: Answer) -> Iterator[TensorRecord]:
    """Sums over cases, by runner and tensor."""
    totals: dict[tuple[str, str], Totals] = {}
    totals64: dict[tuple[str, str], Totals] = {}
    for case in answer.cases:
        for name, terms in case.totals.items():
            key = (case.record.runner, name)
            totals[key] = merge(totals.get(key, {}), terms)
        for name, terms in case.totals64.items():
            key = (case.record.runner, name)
            totals64[key] = add64(totals64.get(key, {}), terms)
    noise = _noise(answer.cases)
    for (runner, name), terms in totals.items():
        slot = slot_of(bundle.model, name)
        metrics = {key: number(value) for key, value in finish(terms).items()}
        own = totals64.get((runner, name), {})
        floor = noise[kind_of(name)].floor if kind_of(name) in noise else 0.0
        budget = budget_of(own, Noise(float(own["reference"][0]), floor)) if own else None
        needed = metrics["max_abs"] if isinstance(metrics["max_abs"], float) else None
        yield TensorRecord(answer.question, runner, name, slot.layer if slot else None, metrics, needed, budget)


def _bundle(bundle: Bundle) -> BundleRecord:
    model, options, manifest = bundle.model, bundle.options, bundle.manifest
    return BundleRecord(
        name=bundle.root.absolute().name,
        source=manifest.source,
        model_type=model.model_type,
        architecture=model.architecture,
        parameters=model.parameters,
        window=model.window,
        pattern=model.pattern,
        layout=options.layout,
        profile=options.profile,
        dtype=options.dtype,
        vocab_size=model.vocab_size,
        versions=dict(sorted(manifest.versions.items())),
        noise=dict(sorted(manifest.noise.items())),
        quantization=manifest.quantization,
        exercises=model.features,
        not_proven=unproven(model, [case.total for case in manifest.cases if manifest.is_recorded(case)]),
    )
