"""What overflows float16 is named, with how far it reaches; what does not is not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import cli
from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.errors import BundleError
from kvparity.exporter.contract.spec import ExportOptions
from kvparity.runners.base import RunnerSpec
from kvparity.runners.compare.judge import JudgeOptions, judge
from kvparity.runners.inspect.ranges import ValueRange, measure_ranges
from tests.families import save_checkpoint, small_config

torch = pytest.importorskip("torch", reason="the exporter's extra is not installed")


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama whose second layer's MLP gives numbers of about a million."""
    from safetensors.numpy import load_file, save_file

    folder = save_checkpoint(small_config("llama", {"num_hidden_layers": 2}), tmp_path_factory.mktemp("loud"))
    weights = load_file(folder / "model.safetensors")
    for part in ("gate_proj", "up_proj", "down_proj"):
        weights[f"model.layers.1.mlp.{part}.weight"] *= 100
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def exported(folder: Path, target: Path, dtype: str) -> Bundle:
    from kvparity.exporter.checkpoint.source import resolve
    from kvparity.exporter.export import export
    from kvparity.runners.reference.record import record_cases

    options = ExportOptions(dtype=dtype)  # type: ignore[arg-type]
    return export(resolve(str(folder)), target, options, record=record_cases, limit=12, in_process=True)


def test_a_model_that_overflows_float16_is_told_where_and_an_engine_does_not_match(
    loud: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = exported(loud, tmp_path / "half", "float16")
    names = [value.name for value in measure_ranges(bundle).overflowing]
    assert "layers.1.mlp.down_proj" in names
    assert not any(name.startswith(("layers.0", "norm")) for name in names)
    assert cli.main(["inspect", str(bundle.root), "--range"]) == 0
    assert "overflow float16, first layers.1.mlp" in " ".join(capsys.readouterr().out.split())
    assert judge(bundle, JudgeOptions((RunnerSpec("ort"),), cases=("prefill-12",), tol=10.0)).verdict == "mismatch"
    with pytest.raises(BundleError, match="is in float16"):
        measure_ranges(bundle, "bfloat16")


def test_a_float32_bundle_is_judged_at_module_borders_and_bfloat16_holds_what_float16_does_not(
    loud: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = exported(loud, tmp_path / "single", "float32")
    overflowing = {value.name: value for value in measure_ranges(bundle).overflowing}
    assert overflowing["layers.1.mlp.down_proj"].largest > 65504
    assert not {"layers.0", "norm", "lm_head"} & set(overflowing)
    assert cli.main(["inspect", str(bundle.root), "--range", "bfloat16", "-c", "prefill-12", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["dtype"], data["cases"], data["overflowing"]) == ("bfloat16", ["prefill-12"], [])
    assert {value["name"] for value in data["values"]} >= {"layers.0.mlp.down_proj", "layers.1.self_attn.query"}


def test_numbers_are_counted_as_float16_itself_rounds_them() -> None:
    array = np.asarray([0.0, -1e-8, 2e-8, 5.9e-8, 6e-5, 6.2e-5, 1.0, -65504.0, 65519.9, 65520.0])
    seen = ValueRange("x", "prefill", "float16").seen(array, "case")
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    assert seen.overflows == np.isinf(half).sum() == 1
    assert seen.lost == ((half == 0) & (array != 0)).sum() == 2
    assert seen.subnormal == ((half != 0) & (np.abs(half) < np.finfo(np.float16).tiny)).sum() == 2
    assert (seen.zeros, seen.elements, seen.largest, seen.case) == (1, 10, 65520.0, "case")
