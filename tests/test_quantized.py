"""Quantised weights: conversion is as exact as for float32, a wrong scale or zero point is seen, bad input is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import cli
from exporter.blocks import Blocks, dequantize, pack, unpack
from exporter.bundle import Bundle
from exporter.spec import ExportOptions
from tests.conftest import TINY

torch = pytest.importorskip("torch", reason="the exporter's extra is not installed")

KEEP = ("per_layer_projection",)  # 24 columns
CASES = ("handoff-128", "batch-chunks", "decode-far")


@pytest.fixture(scope="module", params=["int4", "int8"])
def quantised(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The shipped checkpoint in blocks of 16."""
    from exporter.checkpoint import resolve
    from exporter.export import export
    from runners.record import record_cases

    profile = "ort" if request.param == "int4" else "portable"
    options = ExportOptions(quantize=request.param, block_size=16, keep=KEEP, profile=profile)  # type: ignore[arg-type]
    target = tmp_path_factory.mktemp(request.param) / "bundle"
    return export(resolve(str(TINY)), target, options, record=record_cases, limit=160)


def compare(root: Path, *words: str) -> int:
    cases = [word for case in CASES for word in ("-c", case)]
    return cli.main(["compare", str(root), "--tol", "auto", "--exact", "--allow-modified", *cases, *words])


def test_conversion_is_exact_and_within_the_budget_of_float32(
    quantised: Bundle, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    assert compare(quantised.root, "--json", str(report)) == 0
    assert "Quantisation itself" in capsys.readouterr().out
    quality = json.loads(report.read_text())["bundle"]["quantization"]["quality"]
    assert quality["top1"] > 0.9
    assert 0 < quality["kl_mean"] <= quality["kl_p99"] <= quality["kl_max"]
    assert quality["perplexity_after"] != quality["perplexity_before"]


@pytest.mark.parametrize("part", ["scales", "zero_points", "blocks"])
def test_a_wrong_scale_zero_point_or_code_is_a_mismatch(quantised: Bundle, part: str, tmp_path: Path) -> None:
    """Twin of the match: the graph reads another file than the one that the reference was recorded with."""
    copy = Path(shutil.copytree(quantised.root, tmp_path / "bundle"))
    change(copy / "model.safetensors", f"model.layers.3.mlp.down_proj.weight.{part}")
    assert compare(copy) == 1


def change(path: Path, name: str) -> None:
    """Scale one block by 1.01, or add one to its code or zero point."""
    from exporter.checkpoint import read_safetensors_header

    place = read_safetensors_header(path)[name]
    kind = np.float32 if place.dtype == "float32" else np.uint8
    with path.open("r+b") as stream:
        stream.seek(place.offset)
        values = np.fromfile(stream, kind, 8)
        stream.seek(place.offset)
        (values * np.float32(1.01) if kind is np.float32 else values ^ np.uint8(1)).astype(kind).tofile(stream)


def test_kept_layers_are_the_checkpoints_own_and_a_tied_table_is_stored_once(quantised: Bundle) -> None:
    from safetensors.numpy import load_file

    stored, original = load_file(quantised.root / "model.safetensors"), load_file(TINY / "model.safetensors")
    kept = [name for name in original if name.split(".")[-2] in KEEP]
    assert len(kept) == len(quantised.model.layers)
    assert all(np.array_equal(stored[name], original[name]) for name in kept)
    tables = [name for name in stored if "lm_head" in name or name.startswith("model.embed_tokens.weight")]
    assert tables == [f"model.embed_tokens.weight.{part}" for part in ("blocks", "scales", "zero_points")]
    assert quantised.graph("decode").opset["com.microsoft"] == 1
    kinds = {"MatMulNBits", "GatherBlockQuantized"}
    assert kinds <= operators(quantised)
    bits = {4: 0.25, 8: 0.4}[quantised.manifest.quantization.bits["q_proj"]]  # type: ignore[union-attr]
    assert quantised.manifest.weights[0].bytes < bits * (TINY / "model.safetensors").stat().st_size


def operators(bundle: Bundle) -> set[str]:
    import onnx_ir as ir

    return {node.op_type for node in ir.load(bundle.graph_path("decode")).graph}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--block-size", "32"], "--keep embed_tokens_per_layer,per_layer_projection"),
        (["--block-size", "48"], "expected a power of two"),
        (["--keep", "q_prj"], "no such kind of layer"),
        (["--profile", "bare"], "profile bare promises plain"),
        (["--dtype", "bfloat16"], "float32 and float16 only"),
        (["--keep", "embed,attention,mlp"], ""),
    ],
)
def test_what_cannot_be_quantised_is_refused_with_what_to_do(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if not said:
        words, said = (
            ["--keep", "embed,attention,mlp,per_layer_model_projection,per_layer_input_gate," + KEEP[0]],
            "keep fewer",
        )
    assert cli.main(["export", str(TINY), "-o", str(tmp_path / "b"), "--quantize", "int4", *words]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("algorithm", ["rtn", "k_quant"])
def test_quantisers_round_to_half_a_step_also_where_a_block_is_constant_or_of_one_sign(
    bits: int, algorithm: str
) -> None:
    from exporter.quantize.kernels import quantize_weight

    weight = np.random.default_rng(0).standard_normal((6, 48)).astype(np.float32)
    weight[0], weight[1], weight[2] = 0, 0.7, np.abs(weight[2]) + 5
    blocks = quantize_weight(weight, bits, 16, algorithm)
    error = np.abs(dequantize(blocks, 48) - weight).reshape(6, 3, 16).max(axis=2)
    assert (blocks.bits(48), blocks.block_size(48)) == (bits, 16)
    assert np.all(error <= 1.1 * blocks.scales)


def test_codes_come_back_as_they_were_packed() -> None:
    codes = np.random.default_rng(0).integers(0, 16, (3, 5)).astype(np.uint8)
    assert np.array_equal(unpack(pack(codes, 4), 4, 5), codes)
    blocks = Blocks(pack(codes[:, :4], 4), np.full((3, 1), 0.5, np.float32), None)
    assert np.array_equal(dequantize(blocks, 4), (codes[:, :4] - 8.0) * 0.5)


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_0", "Q8_0", "Q6_K"])
def test_blocks_of_a_gguf_file_stand_for_exactly_its_values(kind: str) -> None:
    gguf = pytest.importorskip("gguf")
    from exporter.quantize.gguf import _TYPES

    size = {"Q4_0": 18, "Q5_0": 22, "Q8_0": 34, "Q6_K": 210}[kind]
    random = np.random.default_rng(0)
    raw = random.integers(0, 256, (3, 2, size)).astype(np.uint8)
    where = slice(208, 210) if kind == "Q6_K" else slice(0, 2)
    raw[..., where] = random.standard_normal((3, 2, 1)).astype(np.float16).view(np.uint8)
    expected = gguf.dequantize(raw.reshape(3, -1), gguf.GGMLQuantizationType[kind])
    codes, scales = _TYPES[kind](raw.reshape(3, -1))
    blocks = Blocks((codes + 128).astype(np.uint8), scales, None)
    assert np.array_equal(dequantize(blocks, expected.shape[1], np.float32), expected)
    blocks.scales[1, 1] *= np.float32(1.5)
    assert not np.array_equal(dequantize(blocks, expected.shape[1], np.float32), expected)
