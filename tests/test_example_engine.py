"""The example of an engine of one's own: it matches, and each of its faults is found where it was put."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kvparity.exporter.contract.bundle import Bundle
from kvparity.runners.base import RunnerSpec
from kvparity.runners.compare.judge import judge
from kvparity.runners.compare.options import JudgeOptions
from kvparity.runners.isolation.process import open_runner
from kvparity.runners.report.report import Report

ENGINE = Path(__file__).resolve().parents[1] / "examples" / "engine" / "engine.py"


def ask(bundle: Bundle, path: Path, *cases: str, fault: str = "", flags: tuple[str, ...] = ()) -> Report:
    words = [str(bundle.root), "-o", str(path), *(word for case in cases for word in ("--case", case)), *flags]
    command = [sys.executable, str(ENGINE), *words, *(("--fault", fault) if fault else ())]
    subprocess.run(command, check=True, capture_output=True, cwd=path.parent)
    spec = RunnerSpec("trace_file", {"file": str(path)})
    return judge(bundle, JudgeOptions((spec,), cases, locate=True), opener=open_runner)


def test_the_engine_matches_in_prompts_chunks_steps_and_batches(tiny_bundle: Bundle, tmp_path: Path) -> None:
    cases = (
        "prefill-259",
        "handoff-129",
        "chunk-cross",
        "decode-only",
        "batch-ragged",
        "batch-chunks",
        "special-tokens",
        "rewind-rounds",
        "resume",
        "reorder",
        "batch-join",
    )
    report = ask(tiny_bundle, tmp_path / "mine.npz", *cases)
    assert report.verdict == "match"
    assert [record.verdict for record in report.cases] == ["match"] * len(cases)


@pytest.mark.parametrize(
    ("fault", "probe", "cause", "words"),
    [
        ("window", "layers.0.self_attn.context", "window", "queries see 129 rows, the window is 128"),
        ("base", "layers.2.self_attn.query", "rope-theta", "base 1e+04, the model's is 1e+06"),
        ("pairs", "layers.0.self_attn.query", "rope-interleaved", "neighbours"),
        ("scale", "layers.0.self_attn.context", "scale", "square root of the head size"),
        ("norm", "per_layer_projection_norm", "norm-weight", "1 + w"),
        ("values", "layers.0.self_attn.value", "other-value", "it holds what layers.0.self_attn.v_proj should be"),
        ("gelu", "layers.0.mlp.down_proj", "activation", "GELU with erf"),
        ("embedding", "embed_tokens", "factor", "square root of the hidden size"),
        ("token", "layers.0.per_layer_input", "inputs", "embed_tokens_per_layer is left out"),
        ("scalar", "layers.0", "factor", "times what it should be"),
        ("cache", "present.0.key", "cache-rows", "1 too few"),
    ],
)
def test_each_fault_is_found_where_it_was_put(
    tiny_bundle: Bundle, tmp_path: Path, fault: str, probe: str, cause: str, words: str
) -> None:
    report = ask(tiny_bundle, tmp_path / "mine.npz", "prefill-259", fault=fault)
    (location,) = report.locations
    assert (location.fault, location.probe, location.cause) == ("engine", probe, cause)
    assert words in location.why


@pytest.mark.parametrize(
    ("fault", "probe", "words"),
    [
        ("base", "layers.2.self_attn.key", "key rows are rotated with base 1e+04, the model's is 1e+06"),
        ("pairs", "present.0.key", "neighbours are turned as pairs"),
        ("values", "present.0.value", "it is not normalised"),
    ],
)
def test_outputs_alone_tell_some_causes_too(
    tiny_bundle: Bundle, tmp_path: Path, fault: str, probe: str, words: str
) -> None:
    (location,) = ask(tiny_bundle, tmp_path / "m.npz", "prefill-259", fault=fault, flags=("--no-probes",)).locations
    assert location.probe == probe
    assert words in location.why


def test_every_fault_of_the_engine_is_tested() -> None:
    text = ENGINE.read_text(encoding="utf-8").split("FAULTS = {")[1].split("}")[0]
    faults = {line.split('"')[1] for line in text.splitlines() if '"' in line}
    (mark,) = (m for m in test_each_fault_is_found_where_it_was_put.pytestmark if m.name == "parametrize")  # type: ignore[attr-defined]
    assert {row[0] for row in mark.args[1]} == faults


def test_a_mask_that_does_not_fit_the_cached_tokens_is_refused(tiny_bundle: Bundle) -> None:
    import runpy

    import numpy as np

    engine = runpy.run_path(str(ENGINE))["Engine"](tiny_bundle.root)
    ids, positions = np.asarray([[2, 5, 7]]), np.arange(3)[None]
    engine(ids, np.ones((1, 3), np.int64), positions)
    for mask in (np.ones((1, 1), np.int64), np.ones((1, 3), np.int64), np.ones((2, 6), np.int64)):
        with pytest.raises(SystemExit, match=r"attention_mask is .* 3 cached and 3 new tokens"):
            engine(ids, mask, positions + 3)
