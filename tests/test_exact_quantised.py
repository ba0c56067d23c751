"""Quantised products and look-ups in float64, whatever their tables come through; beside ONNX Runtime's own kernels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
import pytest

from kvparity.exporter.contract.errors import EngineUnavailableError
from kvparity.judging import _as_run, float64_graph
from kvparity.runners.engines.exact import open_model, widen

ROWS, SIZE = 40, 32  # of the table, of a block


def tables(columns: int, bits: int, *, points: bool) -> dict[str, Any]:
    """Codes as MatMulNBits takes them, scales, zero points and ids of rows."""
    draw = np.random.default_rng(0)
    blocks = -(-columns // SIZE)
    known = {
        "codes": draw.integers(0, 256, (ROWS, blocks, SIZE * bits // 8), np.uint8),
        "scales": draw.uniform(0.01, 0.02, (ROWS, blocks)).astype(np.float32),
        "flat": np.asarray([ROWS, -1], np.int64),
    }
    if points:
        known["points"] = draw.integers(0, 256, (ROWS, -(-blocks * bits // 8)), np.uint8)
    return known


def tied(columns: int, bits: int, *, points: bool = False) -> ir.Model:
    """Rows of a table, times its transpose: the embedding takes the head's codes through a Reshape and an Identity."""
    ends = {
        name: np.asarray([number], np.int64) for name, number in {"zero": 0, "columns": columns, "last": -1}.items()
    }
    known = {name: weight(name, array) for name, array in {**tables(columns, bits, points=points), **ends}.items()}
    ids = ir.Value(name="ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1, "n"]))
    last = [known["points"]] if points else []
    names = {"bits": bits, "block_size": SIZE}
    reshape = ir.node("Reshape", [known["codes"], known["flat"]], name="reshape")
    identity = ir.node("Identity", [reshape.outputs[0]], name="identity")
    embed = ir.node(
        "GatherBlockQuantized",
        [identity.outputs[0], ids, known["scales"], *last],
        {**names, "quantize_axis": 1},
        domain="com.microsoft",
        name="embed",
    )
    cut = ir.node("Slice", [embed.outputs[0], *(known[name] for name in ends)], name="cut")
    head = ir.node(
        "MatMulNBits",
        [cut.outputs[0], known["codes"], known["scales"], *last],
        {**names, "K": columns, "N": ROWS},
        domain="com.microsoft",
        name="head",
    )
    nodes = [reshape, identity, embed, cut, head]
    for node in nodes:
        node.outputs[0].name = f"{node.name}.out"
    logits = head.outputs[0]
    logits.type, logits.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([1, "n", ROWS])
    opsets = {"": 21, "com.microsoft": 1}
    graph = ir.Graph([ids], [logits], nodes=nodes, initializers=list(known.values()), opset_imports=opsets, name="tied")
    return ir.Model(graph, ir_version=10)


def weight(name: str, array: npt.NDArray[Any]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    return ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))


def node_of(model: ir.Model, name: str) -> ir.Node:
    return next(node for node in model.graph if node.name == name)


def exact(model: ir.Model) -> npt.NDArray[Any]:
    """Logits of a few rows in float64."""
    widen(model)
    _, run = open_model(model, "ort", "model.onnx")
    logits: npt.NDArray[Any] = run({"ids": IDS})[0]
    assert logits.dtype == np.float64
    return logits


IDS = np.asarray([[3, 0, 39, 7]], np.int64)


@pytest.mark.parametrize(("columns", "bits", "points"), [(64, 4, False), (48, 4, True), (96, 8, True), (64, 8, False)])
def test_a_tied_table_through_a_reshape_is_what_onnx_runtime_reads(columns: int, bits: int, points: bool) -> None:
    model = tied(columns, bits, points=points)
    whole = ir.to_proto(model).SerializeToString()
    wanted = onnxruntime.InferenceSession(whole, providers=["CPUExecutionProvider"]).run(None, {"ids": IDS})[0]
    assert 0 < np.abs(exact(model) - wanted).max() < 1e-5 * np.abs(wanted).max()  # float32 kernels round


def test_scales_through_a_cast_and_a_bias() -> None:
    plain, model = exact(tied(64, 4)), tied(64, 4)
    half = weight("half", tables(64, 4, points=False)["scales"].astype(np.float16))
    bias = weight("bias", np.linspace(-1, 1, ROWS, dtype=np.float32))
    cast = ir.node("Cast", [half], {"to": int(ir.DataType.FLOAT)}, name="cast")
    cast.outputs[0].name = "wide"
    head = node_of(model, "head")
    head.replace_input_with(2, cast.outputs[0])
    head.resize_inputs(6)
    head.replace_input_with(5, bias)
    model.graph.insert_before(head, cast)
    for value in (half, bias):
        model.graph.register_initializer(value)
    assert bias.const_value is not None
    gap = exact(model) - bias.const_value.numpy() - plain
    assert 0 < np.abs(gap).max() < 1e-3 * np.abs(plain).max()  # scales in half precision


@pytest.mark.parametrize(
    ("name", "attribute", "value", "words"),
    [
        ("embed", "gather_axis", 1, "GatherBlockQuantized along axes 1 and 1 of 2"),
        ("head", "bits", 2, "MatMulNBits of 2 bits"),
        ("head", "K", None, "MatMulNBits as it is written there"),
    ],
)
def test_a_form_that_is_not_known_is_one_line_that_names_the_node(
    name: str, attribute: str, value: int | None, words: str
) -> None:
    model = tied(64, 4)
    node = node_of(model, name)
    if value is None:
        del node.attributes[attribute]
    else:
        node.attributes[attribute] = ir.AttrInt64(attribute, value)
    with pytest.raises(EngineUnavailableError) as caught:
        exact(model)
    assert str(caught.value) == f"exact: node {name}: {words} has no float64 evaluation"


def test_a_package_that_rounds_activations_is_judged_by_its_float64_values_in_its_own_dtypes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inner = SimpleNamespace(
        info=None, run=lambda graph, inputs: {"logits": np.ones(3), "present.0.key": np.ones(3)}, close=lambda: None
    )
    monkeypatch.setattr("kvparity.runners.isolation.process.open_runner", lambda bundle, spec: inner)
    bundle: Any = SimpleNamespace(options=SimpleNamespace(dtype="float16"))
    outputs = float64_graph(bundle).run("prefill", {})
    assert {name: str(array.dtype) for name, array in outputs.items()} == {
        "logits": "float32",
        "present.0.key": "float16",
    }


def test_what_rounded_activations_cost_is_read_off_cases_that_are_right_without_them() -> None:
    cases = [SimpleNamespace(case="prefill-2", verdict="match"), SimpleNamespace(case="ragged", verdict="mismatch")]
    sizes = {"prefill-2": 0.25, "ragged": 4.5}
    results = [SimpleNamespace(tensor="logits", case=case, max_abs_diff=size) for case, size in sizes.items()]
    run: Any = SimpleNamespace(results=results, runners=[SimpleNamespace(name="ort")])
    right: Any = SimpleNamespace(cases=cases)
    assert "logits differ by up to 0.25;" in _as_run(run, right)


def test_codes_that_the_graph_computes_are_one_line() -> None:
    model = tied(64, 4)
    reshaped, embed = node_of(model, "reshape").outputs[0], node_of(model, "embed")
    add = ir.node("Add", [reshaped, reshaped], name="add")
    model.graph.insert_before(embed, add)
    embed.replace_input_with(0, add.outputs[0])
    with pytest.raises(EngineUnavailableError, match="node embed: GatherBlockQuantized whose codes are not constant"):
        exact(model)
