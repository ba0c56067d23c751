"""Faults of states are killed, and located to the layer and the part."""

from __future__ import annotations

import pytest

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.vectors import Vectors
from tests.mutants.mutant import Mutant
from tests.mutants.states import MUTANTS
from tests.mutants.trial import try_mutant

pytest.importorskip("torch", reason="the exporter's extra is not installed")
pytestmark = pytest.mark.slow
CASES = ("prefill-2", "prefill-63", "handoff-49", "chunk-7", "batch-ragged")


@pytest.fixture(scope="module")
def referee(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, list[Vectors], object]:
    from kvparity.runners.locate.pytorch import WatchedModel
    from tests.test_states import exported

    _, bundle = exported("olmo_hybrid", tmp_path_factory.mktemp("mutants"), profile="ort")
    return bundle, [bundle.vectors(name) for name in CASES], WatchedModel(bundle)


def test_the_untouched_graph_is_never_accused(referee: tuple[Bundle, list[Vectors], object]) -> None:
    outcome = try_mutant(referee[0], None, *referee[1:])  # type: ignore[arg-type]
    assert (outcome.verdict, outcome.exact_case, outcome.self_case, outcome.probe) == ("match", "", "", "")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_fault_of_a_state_is_killed_and_located(
    referee: tuple[Bundle, list[Vectors], object], mutant: Mutant
) -> None:
    outcome = try_mutant(referee[0], mutant, *referee[1:])  # type: ignore[arg-type]
    assert outcome.verdict == "killed"
    assert outcome.located, outcome.sentence
