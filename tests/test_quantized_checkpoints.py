"""Quantised checkpoints: exported as the dense weights that transformers makes of them, or refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvparity.exporter.checkpoint.source import resolve
from kvparity.exporter.checkpoint.weights import place_weights
from kvparity.exporter.contract.errors import ExportError
from tests.families import save_checkpoint, small_config

FP4 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]
Tensors = dict[str, Any]


def fp8(tensors: Tensors, block: tuple[int, int], ending: str = "_scale_inv") -> tuple[Tensors, Tensors]:
    """DeepSeek's and Qwen's form: float8 and a scale of every block."""
    import torch

    stored, dense = dict(tensors), dict(tensors)
    for name in (name for name in tensors if name.endswith("_proj.weight")):
        weight = tensors[name]
        rows, columns = weight.shape
        grid = weight.reshape(rows // block[0], block[0], columns // block[1], block[1])
        scale = grid.abs().amax((1, 3)) / 448
        codes = (grid / scale[:, None, :, None]).to(torch.float8_e4m3fn)
        stored[name] = codes.reshape(rows, columns)
        stored[f"{name}{ending}"] = scale
        dense[name] = (codes.float() * scale[:, None, :, None]).reshape(rows, columns)
    return stored, dense


def mxfp4(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """gpt-oss' experts: two codes a byte and an exponent of every 32."""
    import torch

    stored, dense, table = dict(tensors), dict(tensors), torch.tensor(FP4)
    for name in (name for name in tensors if ".experts." in name and name.endswith("_proj")):
        weight = stored.pop(name).transpose(1, 2)
        blocks = weight.reshape(*weight.shape[:2], -1, 32)
        exponent = torch.ceil(torch.log2(blocks.abs().amax(-1) / 6))
        scale = (2**exponent)[..., None]
        codes = (blocks / scale).unsqueeze(-1).sub(table).abs().argmin(-1).to(torch.uint8)
        stored[f"{name}_blocks"] = codes[..., 0::2] | (codes[..., 1::2] << 4)
        stored[f"{name}_scales"] = (exponent + 127).to(torch.uint8)
        dense[name] = (table[codes.long()] * scale).reshape(weight.shape).transpose(1, 2)
    return stored, dense


def written(
    folder: Path, config: Any, settings: dict[str, Any] | None, pack: Callable[[Tensors], tuple[Tensors, Tensors]]
) -> Tensors:
    """Write a checkpoint; returns the dense weights that it stands for."""
    from safetensors.torch import load_file, save_file

    save_checkpoint(config, folder, seed=1)
    stored, dense = pack(load_file(folder / "model.safetensors"))
    contiguous = {name: tensor.contiguous() for name, tensor in stored.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})
    data = json.loads((folder / "config.json").read_text("utf-8"))
    if settings is not None:
        data["quantization_config"] = settings
    (folder / "config.json").write_text(json.dumps(data), encoding="utf-8")
    return dense


def placed(source: Path, folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    checkpoint = resolve(str(source))
    config = checkpoint.config()
    assert not hasattr(config, "quantization_config")
    places = place_weights(checkpoint, checkpoint.meta_model(config), folder)
    read = {n: np.fromfile(folder / p.location, np.float32, p.length // 4, offset=p.offset) for n, p in places.items()}
    return {name: array.reshape(places[name].shape) for name, array in read.items()}


FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any], Callable[[Tensors], tuple[Tensors, Tensors]]]] = {
    "fp8, blocks": ("qwen3", {}, {**FP8, "weight_block_size": [16, 16]}, lambda t: fp8(t, (16, 16))),
    "fp8, long blocks": ("qwen3", {}, {**FP8, "weight_block_size": [8, 32]}, lambda t: fp8(t, (8, 16))),
    "fp8 as DeepSeek V4 names it": ("llama", {}, {**FP8, "weight_block_size": [16, 16]}, lambda t: _renamed(t)),
    "mxfp4": (
        "gpt_oss",
        {"hidden_size": 64, "intermediate_size": 32},
        {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]},
        mxfp4,
    ),
}


def _renamed(tensors: Tensors) -> tuple[Tensors, Tensors]:
    stored, dense = fp8(tensors, (16, 16))
    return {name.replace("weight_scale_inv", "scale"): tensor for name, tensor in stored.items()}, dense


@pytest.mark.parametrize("kind", KINDS)
def test_the_bundle_holds_the_weights_that_the_codes_stand_for(tmp_path: Path, kind: str) -> None:
    model_type, sizes, settings, pack = KINDS[kind]
    dense = written(tmp_path / "hf", small_config(model_type, sizes), settings, pack)
    for name, array in placed(tmp_path / "hf", tmp_path).items():
        assert np.array_equal(array, dense[name].numpy()), name


def test_inspect_says_how_weights_are_quantised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import cli

    model_type, sizes, settings, pack = KINDS["fp8, blocks"]
    written(tmp_path / "hf", small_config(model_type, sizes), settings, pack)
    assert cli.main(["inspect", str(tmp_path / "hf")]) == 0
    assert "weights quantised with fp8, blocks of 16 × 16" in capsys.readouterr().out


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "bitsandbytes": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes, 4 bits"),
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "gptq, 4 bits, groups of 32"),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}, "awq, 4 bits, groups of 32"),
    "fbgemm": ({"quant_method": "fbgemm_fp8"}, "fbgemm_fp8"),
    "compressed-tensors": (
        {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {}},
        "compressed-tensors, format float-quantized",
    ),
    "quanto": ({"quant_method": "quanto", "weights": "int8"}, "quanto"),
    "nvfp4": ({"quant_method": "nvfp4"}, "nvfp4"),
    "unknown to transformers": ({"quant_method": "modelopt", "quant_algo": "FP8"}, "modelopt"),
    "without a method": ({"bits": 4}, "an unnamed method, 4 bits"),
}
PACKAGES = {"bitsandbytes": "bitsandbytes", "gptq": "gptqmodel", "awq": "gptqmodel", "quanto": "optimum"}
PACKAGES["compressed-tensors"] = "compressed_tensors"


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("command", ["export", "inspect"])
def test_what_transformers_cannot_load_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, command: str
) -> None:
    import importlib.util

    import cli

    if importlib.util.find_spec(PACKAGES.get(kind, "none")):
        pytest.skip(f"{PACKAGES[kind]} is installed")
    settings, words = REFUSED[kind]
    written(tmp_path / "hf", small_config("llama"), settings, lambda tensors: (tensors, tensors))
    more = ["-o", str(tmp_path / "b")] if command == "export" else []
    assert cli.main([command, str(tmp_path / "hf"), *more]) == 2
    text = capsys.readouterr().err
    assert f"its weights are quantised with {words}, which transformers cannot load on a CPU here (" in text
    assert "Traceback" not in text
    assert not (tmp_path / "b").exists()


def test_codes_without_a_word_in_the_config_are_refused(tmp_path: Path) -> None:
    written(tmp_path / "hf", small_config("qwen3"), None, lambda tensors: fp8(tensors, (16, 16)))
    with pytest.raises(ExportError, match=r"holds F8_E4M3, and config\.json has no quantization_config"):
        placed(tmp_path / "hf", tmp_path)


def test_blocks_cut_short_are_refused(tmp_path: Path) -> None:
    """Of 48 rows in blocks of 32 transformers would make two blocks of 24."""

    def cut(tensors: Tensors) -> tuple[Tensors, Tensors]:
        import torch

        stored, dense = fp8(tensors, (16, 16))
        name = "model.layers.0.mlp.gate_proj.weight"
        stored[f"{name}_scale_inv"] = torch.ones(2, 1)
        return stored, dense

    written(tmp_path / "hf", small_config("qwen3"), {**FP8, "weight_block_size": [32, 32]}, cut)
    with pytest.raises(ExportError, match=r"gate_proj.weight of \(48, 32\) is quantised in blocks of 32 × 32"):
        placed(tmp_path / "hf", tmp_path)
