"""Gathers the differences of one case call by call, and makes its records when the case ends."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypedDict

import numpy as np

from kvparity.exporter.contract.cases import Case, Step
from kvparity.exporter.contract.spec import ModelSpec
from kvparity.runners.diff.budget import Budget, Noise, add64, budget_of, ratio
from kvparity.runners.diff.curves import Curves
from kvparity.runners.diff.metrics import Totals, merge, top1
from kvparity.runners.diff.names import kind_of, slot_of
from kvparity.runners.diff.records import (
    CaseRecord,
    Divergence,
    Number,
    Question,
    Result,
    TopDifference,
    Verdict,
    number,
)
from kvparity.runners.diff.sentences import divergence_of
from kvparity.runners.diff.tensor import Array, Bools, Expectation, TensorDiff
from kvparity.runners.diff.tokens import flips

__all__ = ["CaseDiff", "Collector"]

SHOWN_FLIPS = 20


@dataclass(frozen=True, eq=False)
class CaseDiff:
    """All that one case on one runner gave: its records, and the terms of each tensor for sums over cases."""

    record: CaseRecord
    results: tuple[Result, ...] = ()
    totals: Mapping[str, Totals] = field(default_factory=dict)
    totals64: Mapping[str, Totals] = field(default_factory=dict)
    noise: Mapping[str, Noise] = field(default_factory=dict)


class Collector:
    """Takes one case's differences in the order of its calls.

    Args:
        question: What is being asked.
        runner: Runner's label.
        case: The case; its name goes into every record.
        model: For layers and windows.
        limits: Largest difference that passes, by output kind.
        noise: PyTorch's own error on this case by output kind; empty where float64 is not known.
        float64: Whether the reference is PyTorch in float64.
    """

    def __init__(
        self,
        question: Question,
        runner: str,
        case: Case,
        model: ModelSpec,
        limits: Mapping[str, float],
        noise: Mapping[str, Noise] | None = None,
        *,
        float64: bool = False,
    ) -> None:
        self._question, self._runner, self._case, self._model = question, runner, case, model
        self._limits, self._noise = limits, noise or {}
        self._float64 = float64
        self._steps: list[tuple[Step, list[TensorDiff]]] = []
        self._top: list[TopDifference] = []
        self._flips = self._near_ties = 0
        self._totals: dict[str, Totals] = {}
        self._totals64: dict[str, Totals] = {}
        self._curves = Curves(case.total, model)

    def add(
        self, step: Step, diffs: Sequence[TensorDiff], outputs: Mapping[str, Array], expected: Iterable[Expectation]
    ) -> None:
        """Take the differences of one call; the outputs are read for the token table and not kept."""
        for diff in diffs:
            self._curves.add(diff)
            if diff.totals:
                self._totals[diff.name] = merge(self._totals.get(diff.name, {}), diff.totals)
            if diff.totals64:
                self._totals64[diff.name] = add64(self._totals64.get(diff.name, {}), diff.totals64)
        flipped = {diff.name: diff.flipped for diff in diffs if diff.flipped is not None}
        for expectation in expected:
            if expectation.name in flipped:
                self._take_flips(step, np.asarray(outputs[expectation.name]), expectation, flipped[expectation.name])
        self._steps.append(
            (step, [replace(diff, errors=None, errors64=None, noise=None, flipped=None) for diff in diffs])
        )

    def _take_flips(self, step: Step, logits: Array, expectation: Expectation, flipped: Bools) -> None:
        for flip in flips(logits, expectation, flipped, step.index):
            self._flips += 1
            self._near_ties += flip.near_tie
            if len(self._top) < SHOWN_FLIPS:
                self._top.append(flip)

    def finish(self, message: str = "") -> CaseDiff:
        """The records of the case.

        Args:
            message: What stopped the case before its last call; it is an error then, unless a mismatch was seen first.
        """
        diffs = [diff for _, step_diffs in self._steps for diff in step_diffs]
        compared = sum(diff.compared for diff in diffs)
        if not message and compared == 0 and all(diff.matches for diff in diffs):
            message = "nothing was compared"
        first = self._first_divergence()
        verdict: Verdict = "mismatch" if first else "error" if message else "match"
        agreed = self._totals.get("logits", {}).get(top1.name)
        record = CaseRecord(
            question=self._question,
            runner=self._runner,
            case=self._case.name,
            why=self._case.why,
            verdict=verdict,
            steps=len(self._case.chunks),
            played=len(self._steps),
            chunks=self._case.chunks,
            pads=self._case.pads,
            starts=tuple(move.start for move in self._case.moves),
            compared=compared,
            padded_slots=sum(diff.padded for diff in diffs),
            rows=_rows(diffs),
            limits=dict(self._limits),
            **self._worst(),
            needs_tol=_needs(diffs) if compared else None,
            top1=None if agreed is None else top1.finish(agreed),
            flips=self._flips,
            near_ties=self._near_ties,
            budget=self._budget(),
            message=message,
            first_divergence=first,
            top_differences=tuple(self._top),
            curves=self._curves.records(),
        )
        results = tuple(self._result(step, diff) for step, step_diffs in self._steps for diff in step_diffs)
        return CaseDiff(record, results, self._totals, self._totals64, self._noise)

    def _first_divergence(self) -> Divergence | None:
        """Earliest call, then lowest slot, then lowest layer; faults of structure come before values."""
        for step, diffs in self._steps:
            bad = [diff for diff in diffs if not diff.matches]
            if bad:
                return divergence_of(
                    *(self._question, self._runner, self._case.seen_by(step), step, bad, self._model),
                    float64=self._float64,
                )
        return None

    def _worst(self) -> _Worst:
        """Where the largest difference is: the first call that has it."""
        valued = [(step, diff) for step, diffs in self._steps for diff in diffs if diff.max_abs is not None]
        if not valued:
            return _Worst(max_abs_diff=None, worst_step=None, worst_tensor=None, worst_position=None)
        step, diff = max(valued, key=lambda pair: _size(pair[1].max_abs))
        return _Worst(
            max_abs_diff=number(_size(diff.max_abs)),
            worst_step=step.index,
            worst_tensor=diff.name,
            worst_position=diff.worst.position if diff.worst else None,
        )

    def _budget(self) -> dict[str, Budget]:
        """Budget by output kind."""
        totals: dict[str, Totals] = {}
        for name, terms in self._totals64.items():
            totals[kind_of(name)] = add64(totals.get(kind_of(name), {}), terms)
        found = {kind: budget_of(terms, self._noise[kind]) for kind, terms in totals.items() if kind in self._noise}
        return {kind: budget for kind, budget in found.items() if budget is not None}

    def _result(self, step: Step, diff: TensorDiff) -> Result:
        slot = slot_of(self._model, diff.name)
        place = diff.worst
        noise = self._noise.get(kind_of(diff.name))
        spent = diff.totals64.get("candidate")
        return Result(
            question=self._question,
            runner=self._runner,
            case=self._case.name,
            step=step.index,
            tensor=diff.name,
            layer=slot.layer if slot else None,
            verdict="match" if diff.matches else "mismatch",
            reason=diff.reason,
            detail=diff.detail,
            max_abs_diff=None if diff.max_abs is None else number(diff.max_abs),
            worst_position=place.position if place else None,
            worst_index=place.index if place else None,
            expected=number(place.expected) if place else None,
            actual=number(place.actual) if place else None,
            first_bad_position=diff.bad.position if diff.bad else None,
            limit=diff.limit,
            needs_tol=None if diff.needs_tol is None else number(diff.needs_tol),
            budget=number(ratio(float(spent[0]), noise.effective)) if spent is not None and noise else None,
        )


class _Worst(TypedDict):
    max_abs_diff: Number | None
    worst_step: int | None
    worst_tensor: str | None
    worst_position: int | None


def _size(value: float | None) -> float:
    """A difference for sorting; one that is not a number is larger than any."""
    return math.inf if value is None or math.isnan(value) else value


def _rows(diffs: Sequence[TensorDiff]) -> tuple[int, int]:
    """Rows of keys and values that were compared, and how many there were."""
    found = [diff.rows for diff in diffs if kind_of(diff.name) in ("key", "value")]
    return sum(judged for judged, _ in found), sum(there for _, there in found)


def _needs(diffs: Sequence[TensorDiff]) -> Number | None:
    """Smallest tolerance that would pass all of them; None where none would."""
    needed = [diff.needs_tol for diff in diffs]
    if any(value is None or not math.isfinite(value) for value in needed):
        return None
    return max((value for value in needed if value is not None), default=None)
