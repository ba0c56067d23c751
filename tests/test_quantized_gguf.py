"""``--quantize gguf``: every tensor as the file has it, values bit for bit gguf's own, graphs exact on these."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cli
from kvparity.exporter.contract.blocks import PARTS, Blocks, dequantize, quantized_names
from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.placement import Placement
from kvparity.exporter.contract.spec import ExportOptions
from kvparity.runners.base import RunnerSpec
from kvparity.runners.compare.judge import JudgeOptions, judge
from tests.gguf_models import MODELS, GgufModel, blocks_of, make_model, write_gguf
from tests.test_quantized import change, operators

gguf = pytest.importorskip("gguf", reason="the exporter's extra is not installed")
ir = pytest.importorskip("onnx_ir", reason="the exporter's extra is not installed")

WIDE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "head_dim": 64,
    "num_hidden_layers": 2,
}  # K types have blocks of 256
ROWS = {
    "llama": ("llama", {**WIDE, "tie_word_embeddings": False}, "Q4_K", "Q6_K"),
    "gemma3": ("gemma3, 4B and more", WIDE, "Q8_0", ""),
}
TYPES = {  # of layers 0 and 1
    "attn_q": ("Q4_K", "Q4_0"),
    "attn_k": ("Q5_K", "Q5_0"),
    "attn_v": ("Q6_K", "Q8_0"),
    "attn_output": ("Q2_K", "IQ4_NL"),
    "ffn_gate": ("Q4_1", "IQ4_XS"),
    "ffn_up": ("Q5_1", "F16"),
    "ffn_down": ("Q3_K", "Q4_K"),
}
OTHERS = ("TQ1_0", "TQ2_0", "MXFP4")


@pytest.fixture(scope="module", params=list(ROWS))
def gguf_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose tensors are of every type."""
    name, settings, embedding, head = ROWS[request.param]
    row = MODELS[name]
    row = GgufModel(row.architecture, row.model_type, {**row.settings, **settings}, row.keys, row.tensors)

    def types(name: str) -> str:
        part = name.split(".")
        if part[0] == "blk":
            return TYPES[part[2]][int(part[1]) % 2]
        return embedding if part[0] == "token_embd" else head

    path = tmp_path_factory.mktemp(request.param) / "tiny.gguf"
    return write_gguf(row, make_model(row), path, types=types)


@pytest.fixture(scope="module")
def bundle(gguf_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    from kvparity.exporter.checkpoint.source import resolve
    from kvparity.exporter.export import export
    from kvparity.runners.reference.record import record_cases

    target = tmp_path_factory.mktemp("gguf") / "bundle"
    return export(
        resolve(str(gguf_file)), target, ExportOptions(quantize="gguf"), record=record_cases, limit=24, in_process=True
    )


@pytest.mark.parametrize("name", sorted({*(kind for kinds in TYPES.values() for kind in kinds), *OTHERS} - {"F16"}))
def test_blocks_stand_for_what_gguf_reads_bit_for_bit(name: str) -> None:
    """Signs of zeros too. The twin is one bit of one code."""
    from kvparity.exporter.checkpoint.gguf_file import GgufTensor
    from kvparity.exporter.quantize.gguf import decode

    kind = gguf.GGMLQuantizationType[name]
    rows = blocks_of(np.random.default_rng(0).standard_normal((3, 512)).astype(np.float32), kind)
    wanted = gguf.dequantize(rows, kind).view(np.uint32)
    blocks = decode(GgufTensor(kind, (3, 512), rows))
    assert np.array_equal(dequantize(blocks, 512, np.float32).view(np.uint32), wanted)
    blocks.codes[1, 1] ^= 1
    assert not np.array_equal(dequantize(blocks, 512, np.float32).view(np.uint32), wanted)


def test_every_tensor_of_a_bundle_is_what_the_file_holds(bundle: Bundle, gguf_file: Path) -> None:
    from safetensors.numpy import load_file

    stored = load_file(bundle.root / "model.safetensors")
    names = quantized_names(stored)
    held = {tensor.name: tensor for tensor in gguf.GGUFReader(gguf_file).tensors}
    quantised = [t for t in held.values() if t.tensor_type.name not in ("F32", "F16")]
    quantization = bundle.manifest.quantization
    assert quantization is not None
    assert len(names) == len(quantised) == quantization.quantised == quantization.from_source
    assert quantization.quality is None
    values = [np.sort(gguf.dequantize(t.data, t.tensor_type), axis=0) for t in quantised]
    for name in names:
        parts = {part: stored[name + part] for part in PARTS if name + part in stored}
        ours = dequantize(Blocks.of(parts.get), 512 if "down_proj" in name else 256, np.float32)
        assert any(np.array_equal(np.sort(ours, axis=0), other) for other in values), name


def test_whoever_audits_the_graph_finds_the_same_values(bundle: Bundle) -> None:
    """``judge`` reads weights from the operators alone: halves of bytes, minima of products and of rows included."""
    from safetensors.numpy import load_file

    from kvparity.runners.adopt.stored import stored_weights

    stored, seen = load_file(bundle.root / "model.safetensors"), set()
    for weight in stored_weights(bundle.graph_path("decode")):
        name = weight.name.removesuffix(".rows").removesuffix(".blocks")
        if weight.coding.startswith("int"):
            parts = {part: stored[name + part] for part in PARTS if name + part in stored}
            wanted = dequantize(Blocks.of(parts.get), weight.shape[1])
            assert np.abs(weight.values() - wanted).max() <= 1e-6 * np.abs(wanted).max(), name
            seen.add(name)
        else:
            assert not name.endswith((*PARTS[1:], ".blocks")), name
    assert seen == set(quantized_names(stored))


def test_graphs_are_exact_on_them_and_a_wrong_minimum_is_seen(bundle: Bundle, tmp_path: Path) -> None:
    asked = JudgeOptions((RunnerSpec("ort"),), cases=("prefill-8", "batch-chunks"), tol="auto", exact=True)
    assert judge(bundle, asked).verdict == "match"
    assert {"MatMulNBits", "GatherBlockQuantized"} <= operators(bundle)
    copy = Path(shutil.copytree(bundle.root, tmp_path / "bundle"))
    change(copy / "model.safetensors", "model.layers.0.self_attn.q_proj.weight.minima")
    assert judge(Bundle.open(copy, allow_modified=True), asked).verdict == "mismatch"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "keeps what a GGUF file holds"),
        (["--dtype", "float16"], "float32 only"),
        (["--quantizer", "k_quant"], "--quantizer is for weights"),
    ],
)
def test_what_gguf_cannot_keep_is_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from tests.conftest import TINY

    assert cli.main(["export", str(TINY), "-o", str(tmp_path / "b"), "--quantize", "gguf", *words]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "b").exists()


def test_accuracy_level_4_is_judged_with_its_rounding_and_without_it_is_a_mismatch(
    gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin is a reference that takes activations as they are: what a float32 budget says of the same engine."""
    from kvparity.exporter.checkpoint.source import resolve
    from kvparity.exporter.export import export
    from kvparity.runners.engines import torch_eager
    from kvparity.runners.reference.record import record_cases

    options = ExportOptions(quantize="gguf", accuracy_level=4)
    asked = JudgeOptions((RunnerSpec("ort"),), cases=("prefill-8", "batch-chunks"), tol="auto", exact=True)
    made = export(resolve(str(gguf_file)), tmp_path / "b", options, record=record_cases, limit=24, in_process=True)
    assert judge(made, asked).verdict == "match"
    quality = made.manifest.quantization.quality  # type: ignore[union-attr]
    assert quality is not None
    assert 0 < quality.kl_mean < 0.05
    monkeypatch.setattr(torch_eager, "round_inputs", lambda *_: None)
    live = JudgeOptions((RunnerSpec("ort"),), cases=("prefill-8",), tol="auto", live=True)
    assert judge(made, live).verdict == "mismatch"


@pytest.mark.parametrize("few", [True, False], ids=["decode", "prefill"])
@pytest.mark.parametrize("name", ["Q4_1", "Q5_1", "Q5_0", "Q8_0"])
def test_products_of_any_number_of_rows_are_about_as_close_as_float32s_own(
    name: str, few: bool, tmp_path: Path
) -> None:
    """Against float64, activations with a mean. The twin takes minima away from codes that are not centered."""
    from kvparity.exporter.checkpoint.gguf_file import GgufTensor
    from kvparity.exporter.quantize.gguf import decode

    kind = gguf.GGMLQuantizationType[name]
    rng = np.random.default_rng(0)
    packed = blocks_of(rng.standard_normal((256, 512)).astype(np.float32), kind)
    blocks = decode(GgufTensor(kind, (256, 512), packed))
    plain, weight = Blocks(blocks.codes, blocks.scales, blocks.zero_points), dequantize(blocks, 512)
    ours, uncentered = session_of(blocks, few, tmp_path / "ours"), session_of(plain, few, tmp_path / "plain")
    float32 = session_of(weight.astype(np.float32), few, tmp_path / "float32")
    limit = 3 if few or name == "Q4_1" else 1  # eight bits are unpacked for prefill
    for rows in (1, 2, 64):
        x = (rng.standard_normal((1, rows, 512)) + 0.3).astype(np.float32)
        right = x.astype(np.float64) @ weight.T
        own = np.linalg.norm(float32.run(None, {"x": x})[0] - right)
        assert np.linalg.norm(ours.run(None, {"x": x})[0] - right) <= limit * own, rows
        if blocks.minima is not None and few and rows > 1:
            sums = x.reshape(1, rows, blocks.scales.shape[1], -1).sum(axis=-1)
            error = np.linalg.norm(uncentered.run(None, {"x": x})[0] - sums @ blocks.minima.T - right)
            assert error > limit * own, rows


def session_of(weights: Blocks | Any, few: bool, folder: Path) -> Any:
    """ONNX Runtime's product of x (1, rows, 512) and a weight in float32, or in blocks as the pass spells it."""
    from kvparity.exporter.passes.matmul_nbits import quantize_products

    ort = pytest.importorskip("onnxruntime")
    folder.mkdir()
    places, path = {}, folder / "weights.bin"
    with path.open("wb") as stream:
        for part in PARTS if isinstance(weights, Blocks) else ():
            array = weights.part(part)
            if array is not None:
                place = stream.tell(), array.nbytes, array.dtype.name, array.shape
                places["a.weight" + part] = Placement(path.name, *place)
                stream.write(np.ascontiguousarray(array).tobytes())
    kind = ir.TensorType(ir.DataType.FLOAT)
    x = ir.Value(name="x", shape=ir.Shape([1, "rows", 512]), type=kind)
    weight = ir.Value(name="a.weight", shape=ir.Shape([256, 512]), type=kind)
    turned = ir.node("Transpose", [weight], attributes={"perm": [1, 0]})
    product = ir.node("MatMul", [x, turned.outputs[0]])
    y = product.outputs[0]
    y.name, y.type, y.shape = "y", kind, ir.Shape([1, "rows", 256])
    graph = ir.Graph([x], [y], nodes=[turned, product], initializers=[weight], opset_imports={"": 21}, name="product")
    model = ir.Model(graph, ir_version=10)
    if not places:
        weight.const_value = ir.tensor(weights, name="a.weight")
    quantize_products(model, places, ExportOptions(quantize="gguf"), few)
    ir.save(model, folder / "product.onnx")
    return ort.InferenceSession(str(folder / "product.onnx"), providers=["CPUExecutionProvider"])
