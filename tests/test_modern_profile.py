"""The modern profile: standard operators stand for exactly the arithmetic that they replace, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import ShapeInferencePass

from kvparity.exporter.contract.float64 import lifted
from kvparity.exporter.contract.spec import FLOAT64_EPSILON
from kvparity.exporter.minimum_runtime import minimum_runtime
from kvparity.exporter.model.standard_operators import attend, is_standard, tensor_scatter
from kvparity.exporter.passes.rms_normalization import fuse_norms
from kvparity.exporter.passes.rotary_embedding import fuse_rotary
from kvparity.runners.engines._spell import spell_out

RNG = np.random.default_rng(3)


class Builder:
    """A graph in a few lines; float64, so that a replacement that is not the same arithmetic stands out."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.inputs: list[ir.Value] = []
        self.constants: dict[str, ir.Value] = {}

    def input(self, name: str, *shape: int) -> ir.Value:
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.DOUBLE))
        self.inputs.append(value)
        return value

    def constant(self, array: Any) -> ir.Value:
        name = f"c{len(self.constants)}"
        self.constants[name] = ir.Value(name=name, const_value=ir.tensor(np.asarray(array), name=name))
        return self.constants[name]

    def __call__(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        node = ir.node(op_type, list(inputs), attributes=attributes)
        self.nodes.append(node)
        out = node.outputs[0]
        out.name, out.type = f"v{len(self.nodes)}", ir.TensorType(ir.DataType.DOUBLE)
        return out

    def model(self, *outputs: ir.Value) -> ir.Model:
        graph = ir.Graph(
            self.inputs, outputs, nodes=self.nodes, initializers=list(self.constants.values()), opset_imports={"": 23}
        )
        return ShapeInferencePass()(ir.Model(graph, ir_version=11)).model  # passes want the shapes that tracing finds


def run(model: ir.Model) -> list[Any]:
    feeds = {
        str(value.name): np.random.default_rng(len(str(value.name))).normal(size=np.asarray(value.shape or (), int))
        for value in model.graph.inputs
    }
    return list(ReferenceEvaluator(ir.to_proto(model)).run(None, feeds))


def ops(model: ir.Model) -> list[str]:
    return sorted({node.op_type for node in model.graph})


def rms(build: Builder, x: ir.Value, *, weight: ir.Value | None, axis: int = -1) -> ir.Value:
    mean = build("ReduceMean", build("Mul", x, x), build.constant(np.asarray([axis])), keepdims=1)
    root = build("Sqrt", build("Add", mean, build.constant(np.float64(2.0**-20))))
    scaled = build("Mul", x, build("Reciprocal", root))
    return scaled if weight is None else build("Mul", scaled, weight)


@pytest.mark.parametrize("weighted", [True, False])
def test_a_norm_becomes_one_operator_with_the_same_value(weighted: bool) -> None:
    build = Builder()
    x, weight = build.input("x", 2, 3, 8), build.input("weight", 8)
    model = build.model(rms(build, x, weight=weight if weighted else None))
    before = run(model)
    fuse_norms(model)
    assert ops(model) == ["RMSNormalization"]
    assert np.abs(run(model)[0] - before[0]).max() < 1e-12


def test_a_mean_over_another_axis_stays() -> None:
    """Twin: not a norm of the last axis."""
    build = Builder()
    model = build.model(rms(build, build.input("x", 2, 3, 8), weight=None, axis=1))
    fuse_norms(model)
    assert "RMSNormalization" not in ops(model)


@pytest.mark.parametrize("kept", [True, False])
def test_a_layer_norm_keeps_the_digits_of_its_epsilon_for_float64(kept: bool) -> None:
    build = Builder()
    x, weight, bias = build.input("x", 2, 3, 8), build.input("weight", 8), build.input("bias", 8)
    model = build.model(build("LayerNormalization", x, weight, bias, axis=-1, epsilon=1e-5))
    fuse_norms(model)
    model = ir.from_proto(ir.to_proto(model))  # the attribute is float32 from here on
    if not kept:
        del model.metadata_props[FLOAT64_EPSILON]
    spell_out(model)
    given = {name: RNG.normal(size=shape) for name, shape in (("x", (2, 3, 8)), ("weight", (8,)), ("bias", (8,)))}
    given["x"] *= 1e-3  # of the epsilon's size when squared
    centered = given["x"] - given["x"].mean(-1, keepdims=True)
    normal = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5)
    (found,) = ReferenceEvaluator(ir.to_proto(model)).run(None, given)
    difference = np.abs(found - (normal * given["weight"] + given["bias"])).max()
    assert bool(difference < 1e-13) is kept


def rope(build: Builder, axis: int, *, second: float = 1.0) -> ir.Value:
    """``axis`` 1: (batch, heads, sequence, 8); 2: (batch, sequence, heads, 8). ``second`` scales the second half."""
    x = build.input("x", 1, 3, 5, 8) if axis == 1 else build.input("x", 1, 5, 3, 8)
    x.shape = ir.Shape(["batch", x.shape[1], x.shape[2], 8])  # type: ignore[index]
    angle = build.input("angle", 1, 5, 4)
    other = angle if second == 1.0 else build("Mul", angle, build.constant(np.float64(second)))
    both = build("Concat", angle, other, axis=-1)
    place, last, one = build.constant(np.asarray([axis])), build.constant(np.asarray([3])), build.constant([1])
    cos, sin = (build("Unsqueeze", build(part, both), place) for part in ("Cos", "Sin"))
    low, middle, high = (build.constant(np.asarray([n])) for n in (0, 4, 8))
    first = build("Slice", x, low, middle, last, one)
    turned = build("Concat", build("Neg", build("Slice", x, middle, high, last, one)), first, axis=-1)
    rotated = build("Add", build("Mul", x, cos), build("Mul", turned, sin))
    return rotated if axis == 1 else build("Transpose", rotated, perm=[0, 2, 1, 3])


@pytest.mark.parametrize("axis", [1, 2])
def test_a_rotation_becomes_one_operator_with_the_same_value(axis: int) -> None:
    build = Builder()
    model = build.model(rope(build, axis))
    x = model.graph.inputs[0]
    x.shape = ir.Shape([1, *[d for d in x.shape or ()][1:]])
    before = run(model)
    fuse_rotary(model)
    assert "RotaryEmbedding" in ops(model)
    assert set(ops(model)) <= {"RotaryEmbedding", "Cos", "Sin", "Transpose"}
    assert np.abs(run(model)[0] - before[0]).max() < 1e-12


def test_a_rotation_whose_halves_differ_stays() -> None:
    """Twin: the operator has one table for both halves."""
    build = Builder()
    model = build.model(rope(build, 1, second=0.5))
    fuse_rotary(model)
    assert "RotaryEmbedding" not in ops(model)


def test_attention_is_transformers_eager_attention() -> None:
    from transformers.models.llama.modeling_llama import eager_attention_forward

    module = torch.nn.Module()
    module.num_key_value_groups = 2
    query, key, value = (torch.randn(2, heads, rows, 8).double() for heads, rows in ((4, 3), (2, 7), (2, 7)))
    mask = torch.where(torch.rand(2, 1, 3, 7) < 0.5, 0.0, -1e9).double()
    with lifted(True):
        expected, _ = eager_attention_forward(module, query, key, value, mask, scaling=0.3)
    assert (attend(query, key, value, mask, scaling=0.3) - expected).abs().max() < 1e-12
    assert (attend(query, key, value, mask, scaling=0.31) - expected).abs().max() > 1e-4


def test_attention_with_sinks_is_left_to_the_model() -> None:
    assert is_standard({"scaling": 1.0, "dropout": 0.0, "softcap": None, "s_aux": None})
    assert not is_standard({"scaling": 1.0, "s_aux": torch.ones(2)})


@pytest.mark.parametrize("circular", [True, False])
def test_tensor_scatter_is_the_operators(circular: bool) -> None:
    build = Builder()
    cache, update = build.input("cache", 2, 3, 9, 4), build.input("update", 2, 3, 4, 4)
    start = build.constant(np.asarray([7, 0] if circular else [5, 0]))
    mode = "circular" if circular else "linear"
    out = build("TensorScatter", cache, update, start, axis=2, mode=mode)
    model = build.model(out)
    model.graph.opset_imports[""] = 24
    feeds = {
        name: torch.from_numpy(RNG.normal(size=shape)) for name, shape in (("cache", (2, 3, 9, 4)), ("u", (2, 3, 4, 4)))
    }
    (theirs,) = ReferenceEvaluator(ir.to_proto(model)).run(
        None, {"cache": feeds["cache"].numpy(), "update": feeds["u"].numpy()}
    )
    ours = tensor_scatter(feeds["cache"], feeds["u"], torch.tensor(start.const_value.numpy()), circular)  # type: ignore[union-attr]
    assert np.array_equal(theirs, ours.numpy())


def test_needs_name_the_runtime_that_is_right_and_not_only_the_one_that_loads() -> None:
    build = Builder()
    model = build.model(build("Gelu", build.input("x", 3)))
    assert minimum_runtime(model) == "opset 23: ONNX Runtime 1.23 or later"
    build = Builder()
    query = build.input("q", 1, 2, 3, 4)
    capped = build("Attention", query, query, query, softcap=5.0)
    assert minimum_runtime(build.model(capped)).startswith(
        "opset 23: ONNX Runtime 1.27 or later (Attention with softcap"
    )
