"""A handful of mutants is located and half of the others killed in every test run; ``make mutants`` runs them all."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest

import kvparity
from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.vectors import Vectors
from tests.mutants.bench import CATALOGUE
from tests.mutants.mutant import Mutant
from tests.mutants.report import failures, markdown
from tests.mutants.trial import Outcome, decisive_cases, killed_in, try_mutant

QUICK = [mutant for mutant in CATALOGUE if mutant.quick]
OTHERS = [mutant for mutant in CATALOGUE if not mutant.quick]
CASES = ("prefill-7", "prefill-9", "handoff-8", "chunk-9", "batch-ragged")


@pytest.fixture(scope="module")
def referee(subject: Bundle) -> tuple[list[Vectors], Any]:
    from kvparity.runners.locate.pytorch import WatchedModel

    return [subject.vectors(name) for name in CASES], WatchedModel(subject)


def test_the_catalogue_is_large_and_names_are_unique() -> None:
    names = [mutant.name for mutant in CATALOGUE]
    assert len(names) >= 60
    assert len(set(names)) == len(names)


def test_the_untouched_graph_is_never_accused(subject: Bundle, referee: tuple[list[Vectors], Any]) -> None:
    outcome = try_mutant(subject, None, *referee)
    assert (outcome.verdict, outcome.exact_case, outcome.self_case, outcome.probe) == ("match", "", "", "")


@pytest.mark.parametrize("mutant", QUICK, ids=lambda mutant: mutant.name)
def test_a_fault_is_killed_and_located(subject: Bundle, referee: tuple[list[Vectors], Any], mutant: Mutant) -> None:
    outcome = try_mutant(subject, mutant, *referee)
    assert outcome.verdict == "killed"
    assert outcome.located, outcome.sentence


@pytest.mark.parametrize(
    "mutant",
    [pytest.param(mutant, id=mutant.name, marks=[pytest.mark.slow] * (n % 2)) for n, mutant in enumerate(OTHERS)],
)
def test_float64_kills_a_fault_and_nothing_that_is_declared_equivalent(subject: Bundle, mutant: Mutant) -> None:
    likely = [subject.vectors(name) for name in CASES]
    found = killed_in(subject, mutant, chain(likely, decisive_cases(subject)))
    assert (found == "") == bool(mutant.equivalent)


def test_a_run_fails_for_a_survivor_an_accusation_and_bad_locating() -> None:
    fine = Outcome("a", "", "killed", probe="x", located=True)
    assert failures([Outcome("untouched", "", "match"), fine]) == []
    assert failures([Outcome("b", "", "survived")]) == ["survived: b"]
    assert failures([Outcome("untouched", "", "killed", exact_case="c")])
    assert failures([fine, Outcome("c", "", "killed", probe="y")])
    assert failures([Outcome("d", "", "not equivalent")])
    assert "| a |" in markdown([fine], CATALOGUE)


def test_every_case_of_the_right_graphs_matches_by_default(subject: Bundle) -> None:
    """Chunks amplify float32 rounding in this model; PyTorch's own error in pieces is what allows for it."""
    report = kvparity.compare(subject)
    assert (report.verdict, report.tol) == ("match", "auto")
    assert any(found.pieces for found in (subject.vectors(entry.name) for entry in subject.manifest.cases))
