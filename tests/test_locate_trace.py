"""Locating in recorded values: engines that can't be run here say where they went wrong, too."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.errors import BundleError, TraceError
from kvparity.runners.base import RunnerSpec
from kvparity.runners.compare.judge import judge
from kvparity.runners.compare.options import JudgeOptions
from kvparity.runners.decode.play import play
from kvparity.runners.diff.location import Location
from kvparity.runners.engines.trace_file import TraceWriter
from kvparity.runners.inspect.probes import inside, save_probes
from kvparity.runners.isolation.process import open_runner
from kvparity.runners.report.report import Report
from tests.mutants import around, attention
from tests.mutants.mutant import Mutant
from tests.mutants.recording import RecordingEngine
from tests.mutants.trial import mutated

MUTANTS = {mutant.name: mutant for mutant in (*attention.MUTANTS, *around.MUTANTS)}
CASES = ("prefill-9", "handoff-8", "chunk-9")


def ask(bundle: Bundle, path: Path, *cases: str, tol: float = 1e-4) -> Report:
    spec = RunnerSpec("trace_file", {"file": str(path)})
    return judge(bundle, JudgeOptions((spec,), cases or CASES, tol=tol, locate=True), opener=open_runner)


def record(
    bundle: Bundle,
    path: Path,
    cases: Collection[str],
    *,
    mutant: Mutant | None = None,
    probes: str = "*",
    outputs: str = "*",
) -> Path:
    """Play cases on a mutant of the bundle and write what it returned, with the values inside that a pattern names."""
    with mutated(bundle, mutant) as damaged, TraceWriter(path, "recording engine") as writer:
        engine = RecordingEngine(damaged)
        for case in cases:
            try:
                for result in play(bundle, engine, bundle.vectors(case).case):
                    kept = {k: v for k, v in result.outputs.items() if fnmatchcase(k, outputs)}
                    inner = {k: v for k, v in engine.inside.items() if fnmatchcase(k, probes)}
                    writer.add(case, result.step, kept, inner)
            except Exception:  # a wrong cache makes the next call fail; what was recorded before it stays
                if mutant is None:
                    raise
    return path


def found(report: Report) -> Location:
    (location,) = report.locations
    return location


def change(path: Path, key: str, edit: Any) -> Path:
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays[key] = edit(arrays[key])
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("name", "cause", "words"),
    [
        ("window-1-decode", "window", "queries see 7 rows, the window is 8"),
        ("rope-theta", "rope-theta", "another base"),
        ("rope-interleaved", "rope-interleaved", "neighbours are paired"),
        ("key-unrotated", "unrotated", "not rotated"),
        ("q-norm-missing", "other-value", "it holds what layers.1.self_attn.q_proj should be"),
        ("q-norm+1", "norm-weight", "1 + w"),
        ("final-norm-weight", "norm-weight", "left out"),
        ("attention-scale", "scale", "one over the square root of the head size"),
        ("attention-cap", "attention-cap", "capped at 20"),
        ("sharing-wrong", "other-value", "reads layers.1.self_attn.key"),
        ("cache-short", "cache-rows", "1 too few"),
        ("cache-neighbour", "cache-neighbour", "another layer"),
        ("embed-scale", "factor", "one over the square root of the hidden size"),
        ("ple-tokens", "inputs", "embed_tokens_per_layer is left out"),
        ("layer-scalar", "factor", "times what it should be"),
        ("gelu-erf-one", "activation", "GELU with erf"),
        ("silu", "activation", "SiLU"),
        ("gate-up-swapped", "inputs", "exchanged"),
        ("residual-dropped", "inputs", "left out"),
        ("residual-twice", "inputs", "twice"),
        ("values-from-keys", "inputs", "k_proj"),
        ("layer-norm", "inputs", "as LayerNorm does"),
        ("ple-norm", "passed-through", "it is per_layer_model_projection times"),
        ("softcap-value", "softcap", "capped at 5.5"),
        ("logits-rolled", "shifted", "position p holds what position p"),
        ("weight-row-zero", "weight", "output channels 3"),
    ],
)
def test_an_engine_with_a_fault_is_told_where_and_why(
    subject: Bundle, tmp_path: Path, name: str, cause: str, words: str
) -> None:
    mutant = MUTANTS[name]
    case = "handoff-8" if name.startswith(("window-1-decode", "cache-neighbour")) else "prefill-9"
    report = ask(subject, record(subject, tmp_path / "t.npz", (case,), mutant=mutant), case)
    location = found(report)
    assert report.verdict == "mismatch"
    assert location.fault == "engine"
    assert any(fnmatchcase(location.probe, glob) for glob in mutant.where.split("|")), location
    assert location.cause == cause, location
    assert words in location.why


def test_an_engine_without_fault_is_not_accused(subject: Bundle, tmp_path: Path) -> None:
    path = record(subject, tmp_path / "t.npz", CASES)
    assert ask(subject, path).locations == ()
    location = found(ask(subject, path, tol=1e-9))
    assert (location.fault, location.probe) == ("none", "")
    assert "within float32 rounding" in location.note


def test_few_recorded_values_name_the_stretch_between_them(subject: Bundle, tmp_path: Path) -> None:
    path = record(subject, tmp_path / "t.npz", CASES, mutant=MUTANTS["silu"], probes="layers.?")
    location = found(ask(subject, path))
    assert (location.probe, location.cause) == ("layers.2", "")
    assert "layers.2.input_layernorm" in location.note
    assert "layers.1." not in location.note
    assert "record those to narrow it" in location.sentence


def test_outputs_alone_name_the_first_cache_that_is_wrong(subject: Bundle, tmp_path: Path) -> None:
    path = record(subject, tmp_path / "t.npz", CASES, mutant=MUTANTS["silu"], probes="")
    assert found(ask(subject, path)).probe in ("layers.3.self_attn.key", "present.3.key")


def test_values_inside_alone_are_judged_and_what_lacks_is_said(subject: Bundle, tmp_path: Path) -> None:
    right = record(subject, tmp_path / "a.npz", ("prefill-9",), outputs="", probes="layers.0.*")
    location = found(ask(subject, right, "prefill-9"))
    assert location.fault == "unknown"
    assert "it lacks logits" in location.note
    wrong = record(subject, tmp_path / "b.npz", ("prefill-9",), mutant=MUTANTS["gelu-erf"], outputs="", probes="*")
    assert found(ask(subject, wrong, "prefill-9")).probe == "layers.0.mlp.down_proj"


def test_the_first_value_that_is_not_a_number_is_named(subject: Bundle, tmp_path: Path) -> None:
    path = record(subject, tmp_path / "t.npz", ("prefill-9",))
    change(path, "prefill-9/step_0/logits", lambda array: np.full_like(array, np.nan))
    change(path, "prefill-9/step_0/probes/layers.3.self_attn.o_proj", lambda array: np.full_like(array, np.nan))
    assert found(ask(subject, path, "prefill-9")).probe == "layers.3.self_attn.o_proj"


def test_padded_slots_may_hold_anything_and_faults_beside_them_are_found(subject: Bundle, tmp_path: Path) -> None:
    case = subject.vectors("batch-ragged").case
    dead = case.mask[:, : case.chunks[0]] == 0
    assert dead.any()

    def poison(array: np.ndarray) -> np.ndarray:
        poisoned = np.moveaxis(array.copy(), 2 if array.ndim == 4 else 1, 1)
        poisoned[dead] = np.nan
        return np.moveaxis(poisoned, 1, 2 if array.ndim == 4 else 1)

    for mutant, probe in ((None, ""), (MUTANTS["silu"], "layers.2.mlp.down_proj")):
        path = record(subject, tmp_path / "t.npz", ("batch-ragged",), mutant=mutant)
        for name in ("layers.0.self_attn.value", "layers.1.self_attn.query", "layers.3.input_layernorm"):
            change(path, f"batch-ragged/step_0/probes/{name}", poison)
        location = found(ask(subject, path, "batch-ragged", tol=1e-9 if mutant is None else 1e-4))
        assert (location.probe, location.fault) == (probe, "engine" if probe else "none"), location


def test_a_foreign_name_and_a_wrong_shape_are_said(subject: Bundle, tmp_path: Path) -> None:
    with np.load(record(subject, tmp_path / "t.npz", ("prefill-9",))) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays["prefill-9/step_0/logits"] = arrays["prefill-9/step_0/logits"] + 1
    probe = "prefill-9/step_0/probes/layers.3.self_attn.query"
    for key, array, words in (
        (probe[:-1], arrays[probe], "close to it are layers.3.self_attn.query"),
        (probe, arrays[probe][0], "has shape (4, 9, 16), expected (1, 4, 9, 16)"),
    ):
        np.savez(tmp_path / "bad.npz", **{**{k: v for k, v in arrays.items() if k != probe}, key: array})
        location = found(ask(subject, tmp_path / "bad.npz", "prefill-9"))
        assert location.fault == "unknown"
        assert words in location.note


def test_written_probes_are_a_trace_that_matches(subject: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    calls = tuple(inside(subject, ("handoff-8",)))
    assert save_probes(subject, calls, path) > 100 * len(calls)
    assert ask(subject, path, "handoff-8").verdict == "match"
    key = "handoff-8/step_1/probes/layers.4.mlp.down_proj"
    change(path, key, lambda array: array + np.float32(0.01))
    change(path, "handoff-8/step_1/logits", lambda array: array + np.float32(0.01))
    location = found(ask(subject, path, "handoff-8"))
    assert (location.step, location.probe) == (1, "layers.4.mlp.down_proj")


def test_probes_of_what_is_not_there_are_refused(subject: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no step 99"):
        tuple(inside(subject, ("handoff-8",), 99))
    calls = tuple(inside(subject, ("prefill-9",)))
    with pytest.raises(BundleError, match=r"no value inside matches layer\.\*"):
        save_probes(subject, calls, tmp_path / "t.npz", ("layer.*",))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TraceError, match="cannot be written"):
        save_probes(subject, calls, tmp_path / "missing" / "t.npz")
