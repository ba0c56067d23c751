"""float16 bundles are judged by what PyTorch's own float16 rounds; bfloat16 is told to be unavailable where it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from exporter.bundle import Bundle
from exporter.spec import ExportOptions
from runners.base import RunnerSpec
from runners.judge import JudgeOptions, judge
from tests.families import FAMILIES, make_config, save_checkpoint

torch = pytest.importorskip("torch", reason="the exporter's extra is not installed")


def exported(name: str, dtype: str, folder: Path) -> Bundle:
    from exporter.checkpoint import resolve
    from exporter.export import export
    from runners.record import record_cases

    family = next(family for family in FAMILIES if family.name == name)
    checkpoint = resolve(str(save_checkpoint(make_config(family), folder / "hf")))
    options = ExportOptions(dtype=dtype)  # type: ignore[arg-type]
    return export(checkpoint, folder / "bundle", options, record=record_cases, limit=24, in_process=True)


def test_float16_is_within_the_budget_of_pytorch_in_float16_and_a_fault_is_not(tmp_path: Path) -> None:
    """A model with softcaps; the twin is a weight of the bundle that is off by a tenth."""
    bundle = exported("gemma2", "float16", tmp_path)
    assert 1e-4 < bundle.manifest.noise["logits"] < 0.1, "PyTorch's own float16 error, not float32's"
    options = JudgeOptions((RunnerSpec("ort"),), tol="auto")
    assert judge(bundle, options).verdict == "match"
    place = bundle.root / bundle.manifest.weights[0].path
    from exporter.checkpoint import read_safetensors_header

    norm = read_safetensors_header(place)["model.norm.weight"]
    with place.open("r+b") as stream:
        stream.seek(norm.offset)
        values = np.fromfile(stream, np.float16, 32)
        stream.seek(norm.offset)
        (values + np.float16(0.5)).tofile(stream)
    assert judge(bundle, options).verdict == "mismatch"


def test_an_engine_without_bfloat16_kernels_is_an_error_that_names_the_operator_and_no_pass(tmp_path: Path) -> None:
    report = judge(exported("gemma2", "bfloat16", tmp_path), JudgeOptions((RunnerSpec("ort"),), tol="auto"))
    assert report.verdict == "error"
    assert {"NOT_IMPLEMENTED" in record.message for record in report.cases} == {True}
