"""Quantised weights: conversion is as exact as for float32, a wrong scale or zero point is seen, bad input is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cli
from kvparity.exporter.contract.blocks import Blocks, dequantize, pack, unpack
from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.spec import ExportOptions
from kvparity.runners.base import RunnerSpec
from kvparity.runners.compare.judge import JudgeOptions, judge
from tests.conftest import TINY
from tests.families import by_name, save_checkpoint, small_config

torch = pytest.importorskip("torch", reason="the exporter's extra is not installed")

KEEP = ("per_layer_projection",)  # 24 columns
CASES = ("handoff-128", "batch-chunks", "decode-far")


@pytest.fixture(scope="module", params=["int4", "int8"])
def quantised(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The shipped checkpoint in blocks of 16."""
    from kvparity.exporter.checkpoint.source import resolve
    from kvparity.exporter.export import export
    from kvparity.runners.reference.record import record_cases

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
    from kvparity.exporter.checkpoint.source import read_safetensors_header

    place = read_safetensors_header(path)[name]
    kind = np.float32 if place.dtype == "float32" else np.uint8
    with path.open("r+b") as stream:
        stream.seek(place.offset)
        values: Any = np.fromfile(stream, kind, 8)
        stream.seek(place.offset)
        np.asarray(values * np.float32(1.01) if kind is np.float32 else values ^ np.uint8(1), kind).tofile(stream)


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
    found = quantised.manifest.quantization
    assert found is not None
    assert found.bits["embed_tokens"] == 8
    bits = {4: 0.27, 8: 0.4}[found.bits["q_proj"]]
    assert quantised.manifest.weights[0].bytes < bits * (TINY / "model.safetensors").stat().st_size


def operators(bundle: Bundle) -> set[str]:
    import onnx_ir as ir

    return {node.op_type for node in ir.load(bundle.graph_path("decode")).graph}


@pytest.mark.parametrize(
    ("name", "quantize", "kept"),
    [
        ("gemma4 26B-A4B-shaped", "int4", ()),
        ("gpt_oss", "int8-dynamic", ("experts.down_proj_bias", "experts.gate_up_proj_bias", "router")),
    ],
)
def test_experts_are_quantised_what_stays_is_named_and_a_wrong_code_is_seen(
    name: str, quantize: str, kept: tuple[str, ...], tmp_path: Path
) -> None:
    """Two layouts of experts: (rows, columns) and, in gpt-oss, (columns, rows)."""
    from kvparity.exporter.checkpoint.source import resolve
    from kvparity.exporter.export import export
    from kvparity.runners.reference.record import record_cases

    family = by_name(name)
    config = small_config(family.model_type, {**family.settings, "moe_intermediate_size": 32, "intermediate_size": 32})
    checkpoint = resolve(str(save_checkpoint(config, tmp_path / "hf")))
    options = ExportOptions(quantize=quantize, block_size=16)  # type: ignore[arg-type]
    bundle = export(checkpoint, tmp_path / "b", options, record=record_cases, limit=24, in_process=True)
    asked = JudgeOptions((RunnerSpec("ort"),), cases=("prefill-8", "decode-far"), tol="auto", exact=True)
    assert judge(bundle, asked).verdict == "match"
    quantization = bundle.manifest.quantization
    assert quantization is not None
    assert "experts" in quantization.bits
    assert quantization.kept == kept
    assert set(quantization.dynamic) == (set(quantization.bits) - {"experts"} if "dynamic" in quantize else set())
    assert all(word in " ".join(quantization.lines(1)) for word in kept)
    weight = "experts" if name.startswith("gemma4") else "mlp.experts"
    assert {"GatherBlockQuantized"} <= operators(bundle)
    change(bundle.root / "model.safetensors", f"model.layers.0.{weight}.down_proj.blocks")
    assert judge(Bundle.open(bundle.root, allow_modified=True), asked).verdict == "mismatch"


def test_rows_and_products_are_those_of_quantize_dynamic(tmp_path: Path) -> None:
    """Codes, scales and the integer product, bit for bit; the twin is one code of one row."""
    ir, onnxruntime = pytest.importorskip("onnx_ir"), pytest.importorskip("onnxruntime")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from kvparity.exporter.passes.matmul_integer import multiply_integers
    from kvparity.exporter.quantize.kernels import quantize_rows

    random = np.random.default_rng(0)
    weight, x = (random.standard_normal(shape).astype(np.float32) for shape in ((24, 32), (3, 32)))

    def constant(name: str, array: np.ndarray) -> Any:
        tensor = ir.tensor(array, name=name)
        return ir.Value(name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))

    def product(*constants: Any) -> Any:
        source = ir.Value(name="x", shape=ir.Shape(["n", 32]), type=ir.TensorType(ir.DataType.FLOAT))
        node = ir.node("MatMul", [source, constants[0]], name="product")
        node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
        node.outputs[0].shape = ir.Shape(["n", 24])
        graph = ir.Graph([source], node.outputs, nodes=[node], initializers=constants, opset_imports={"": 18}, name="g")
        return ir.Model(graph, ir_version=8)

    def run(model: bytes) -> np.ndarray:
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, {"x": x})[0])

    ir.save(product(constant("w", np.ascontiguousarray(weight.T))), tmp_path / "float.onnx")
    quantize_dynamic(tmp_path / "float.onnx", tmp_path / "theirs.onnx", per_channel=True, weight_type=QuantType.QInt8)
    theirs = {
        name: value.const_value.numpy() for name, value in ir.load(tmp_path / "theirs.onnx").graph.initializers.items()
    }
    blocks = quantize_rows(weight)
    assert np.array_equal(blocks.codes.astype(np.int16).T - 128, theirs["w_quantized"])
    assert np.array_equal(blocks.scales[:, 0], theirs["w_scale"])
    expected = run((tmp_path / "theirs.onnx").read_bytes())
    for codes, same in ((blocks.codes, True), (blocks.codes ^ np.eye(24, 32, dtype=np.uint8), False)):
        ours = product(constant("codes", codes), constant("scales", blocks.scales[:, 0]))
        node = ours.graph.node(0)
        multiply_integers(ours, node, *ours.graph.initializers.values())
        assert np.array_equal(run(ir.to_proto(ours).SerializeToString()), expected) is same


def test_pytorch_rounds_activations_as_dynamic_quantize_linear_does() -> None:
    ir, onnxruntime = pytest.importorskip("onnx_ir"), pytest.importorskip("onnxruntime")
    from kvparity.exporter.contract.rounding import rounded

    x = ir.Value(name="x", shape=ir.Shape(["n"]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("DynamicQuantizeLinear", [x], num_outputs=3)
    for output, kind in zip(node.outputs, (ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8), strict=True):
        output.type = ir.TensorType(kind)
    graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 18}, name="g")
    model = ir.to_proto(ir.Model(graph, ir_version=8)).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    for array in (random.standard_normal(999), np.abs(random.standard_normal(99)), np.zeros(3), -np.ones(4)):
        given = array.astype(np.float32)
        codes, scale, zero = session.run(None, {"x": given})
        expected = (codes.astype(np.float32) - np.float32(zero)) * scale
        assert np.abs(rounded(torch.from_numpy(given)).numpy() - expected).max() <= 1e-6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--quantize", "int8-dynamic", "--dtype", "float16"], "DynamicQuantizeLinear takes float32 only"),
        (["--quantize", "int8-dynamic", "--quantizer", "k_quant"], "--quantizer is for weights in blocks"),
        (["--quantize", "int8-dynamic", "--accuracy-level", "4"], "--accuracy-level is for weights in blocks"),
        (["--block-size", "32"], "--keep embed_tokens_per_layer,per_layer_projection"),
        (["--block-size", "48"], "expected a power of two"),
        (["--quantize", "none", "--accuracy-level", "4"], "--accuracy-level is for weights in blocks"),
        (["--int8", "q_prj"], "--int8 q_prj: no such kind of layer"),
        (["--quantize", "int8", "--int8", "mlp"], "--int8 names kinds for --quantize int4"),
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
    from kvparity.exporter.quantize.kernels import quantize_weight

    weight = np.random.default_rng(0).standard_normal((6, 48)).astype(np.float32)
    weight[0], weight[1], weight[2] = 0, 0.7, np.abs(weight[2]) + 5
    blocks = quantize_weight(weight, bits, 16, algorithm)
    error = np.abs(dequantize(blocks, 48) - weight).reshape(6, 3, 16).max(axis=2)
    assert (blocks.bits(48), blocks.block_size(48)) == (bits, 16)
    assert np.all(error <= 1.1 * blocks.scales)


def test_pytorch_rounds_activations_as_matmul_nbits_at_level_4_does() -> None:
    """A product by ONNX Runtime is the product of what is rounded; the twin is another size of blocks."""
    helper, onnxruntime = pytest.importorskip("onnx").helper, pytest.importorskip("onnxruntime")
    from kvparity.exporter.contract.rounding import rounded_blocks

    random = np.random.default_rng(0)
    for bits in (4, 8):
        codes = random.integers(0, 256, (24, 8, 32 * bits // 8)).astype(np.uint8)
        scales = random.uniform(0.5, 1, (24, 8)).astype(np.float32) / (1 << bits)
        node = helper.make_node(
            *("MatMulNBits", ["x", "w", "s"], ["y"]),
            **{"domain": "com.microsoft", "K": 256, "N": 24, "bits": bits, "block_size": 32, "accuracy_level": 4},
        )
        ports = [[helper.make_tensor_value_info(name, 1, ["n", size])] for name, size in (("x", 256), ("y", 24))]
        stored = [helper.make_tensor("w", 2, codes.shape, codes.tobytes(), True)]
        stored.append(helper.make_tensor("s", 1, scales.shape, scales.ravel()))
        graph = helper.make_graph([node], "g", *ports, stored)
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
        x = random.standard_normal((3, 256)).astype(np.float32)
        x[1, :32] = 0
        found = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        weight = dequantize(Blocks(codes.reshape(24, -1), scales), 256)
        near = (rounded_blocks(torch.from_numpy(x), size).double().numpy() for size in (32, 64))
        off = [np.abs(found - inputs @ weight.T).max() for inputs in near]
        assert off[0] <= 1e-5 * np.abs(found).max() < off[1]


def test_codes_come_back_as_they_were_packed() -> None:
    codes = np.random.default_rng(0).integers(0, 16, (3, 5)).astype(np.uint8)
    assert np.array_equal(unpack(pack(codes, 4), 4, 5), codes)
    blocks = Blocks(pack(codes[:, :4], 4), np.full((3, 1), 0.5, np.float32), None)
    assert np.array_equal(dequantize(blocks, 4), (codes[:, :4] - 8.0) * 0.5)
