"""Weights put in the wrong place are seen by references from the checkpoint, and by no reference from the bundle."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from kvparity.exporter.checkpoint.source import resolve
from kvparity.exporter.contract.bundle import Bundle, Recording
from kvparity.exporter.contract.cases import Case
from kvparity.exporter.contract.errors import BundleError
from kvparity.exporter.contract.spec import PREFILL, ExportOptions
from kvparity.exporter.export import export
from kvparity.runners.base import RunnerSpec
from kvparity.runners.compare.judge import JudgeOptions, judge
from kvparity.runners.engines import ort
from kvparity.runners.reference.record import record_cases
from kvparity.runners.reference.self_check import check_logits
from tests.families import save_checkpoint, small_config
from tests.mutants.placement import PLACEMENTS, PlacementMutant, misplace

TOL = 1e-4


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of a Llama with a head of its own, and one case of every token recorded from its checkpoint."""
    folder = tmp_path_factory.mktemp("placement")
    config = small_config("llama", {"num_hidden_layers": 2, "hidden_size": 64, "tie_word_embeddings": False})
    tokens = np.random.default_rng(0).permutation(96)[None, :24]
    tokens[0, 3] = 0  # the padding token, as a token
    case = Case("tokens", tokens.astype(np.int64), (24,), (0,), PREFILL)
    return export(
        resolve(str(save_checkpoint(config, folder / "hf"))),
        folder / "bundle",
        ExportOptions(),
        record=lambda bundle, _, source: record_cases(bundle, [case], source, float64=False),
        in_process=True,
    )


def _misplaced(right: Bundle, mutant: PlacementMutant, folder: Path) -> Bundle:
    shutil.copytree(right.root, folder)
    misplace(folder, mutant)
    return Bundle.open(folder, allow_modified=True)


def _verdict(bundle: Bundle, *, live: bool = False) -> str:
    options = JudgeOptions((RunnerSpec("ort", {"threads": "1"}),), tol=TOL, live=live)
    return judge(bundle, options, opener=lambda opened, spec: ort.open_session(opened, spec.options)).verdict


def test_the_right_bundle_matches(right: Bundle) -> None:
    assert _verdict(right) == "match"


@pytest.mark.parametrize("mutant", PLACEMENTS, ids=lambda mutant: mutant.name)
def test_a_reference_from_the_checkpoint_kills_it(right: Bundle, mutant: PlacementMutant, tmp_path: Path) -> None:
    assert _verdict(_misplaced(right, mutant, tmp_path / "bundle")) == "mismatch"


@pytest.mark.parametrize("name", ["tied-head", "keys-for-values", "scaled-norm"])
def test_a_reference_from_the_bundle_lets_it_survive(right: Bundle, name: str, tmp_path: Path) -> None:
    """The reason for the other way: PyTorch with the bundle's own weights has the same fault."""
    mutant = next(mutant for mutant in PLACEMENTS if mutant.name == name)
    bundle = _misplaced(right, mutant, tmp_path / "far" / "bundle")  # the checkpoint is not found from there
    assert _verdict(bundle, live=True) == "match"


def test_a_head_in_the_wrong_place_fails_the_export_itself(right: Bundle, tmp_path: Path) -> None:
    mutant = next(mutant for mutant in PLACEMENTS if mutant.name == "tied-head")
    bundle = _misplaced(right, mutant, tmp_path / "bundle")
    with pytest.raises(BundleError, match=r"do not compute what LlamaForCausalLM computes .* nothing was written"):
        check_logits(bundle, _recording(bundle))
    check_logits(right, _recording(right))


def _recording(bundle: Bundle) -> Recording:
    made = bundle.manifest
    return Recording(made.cases, made.noise, made.sequences, made.head)
