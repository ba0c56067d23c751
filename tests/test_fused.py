"""Fusions compute what they replace, leave alone what only looks alike, and the float64 spelling undoes them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from kvparity.exporter.model.grouped_queries import can_group, grouped_attention
from kvparity.exporter.passes.cancel_reshapes import drop_reshapes
from kvparity.exporter.passes.rms_normalization import fuse_norms
from kvparity.exporter.passes.rotary_embedding import fuse_rotary
from kvparity.exporter.passes.skip_normalization import fuse_skips
from kvparity.runners.engines._spell import spell_out
from kvparity.runners.engines.exact import widen

NORM = """
<ir_version: 8, opset_import: ["" : 18]>
norm (float[b, s, 8] x, float[b, s, 8] y, float[8] w) => (float[b, s, 8] out, float[b, s, 8] late)
<int64[1] axes = {AXIS}, float eps = {1e-6}>
{
  sum = Add(x, y)
  square = Mul(sum, sum)
  mean = ReduceMean<keepdims = 1>(square, axes)
  total = Add(mean, eps)
  root = Sqrt(total)
  inverse = Reciprocal(root)
  scaled = Mul(sum, inverse)
  normal = Mul(scaled, w)
  out = Neg(normal)
  late = Neg(sum)
}
"""
ROTARY = """
<ir_version: 8, opset_import: ["" : 18]>
rotary (float[b, s, 3, 8] x, float[b, s, 4] f, float[b, s, 4] g) => (float[b, s, 3, 8] out)
<int64[1] zero = {0}, int64[1] half = {4}, int64[1] full = {8}, int64[1] last = {3}, int64[1] two = {2}>
{
  angles = Concat<axis = -1>(f, OTHER)
  c = Cos(angles)
  n = Sin(angles)
  cos = Unsqueeze(c, two)
  sin = Unsqueeze(n, two)
  lower = Slice(x, zero, half, last)
  upper = Slice(x, half, full, last)
  minus = Neg(upper)
  turned = Concat<axis = -1>(minus, lower)
  left = Mul(x, cos)
  right = Mul(turned, sin)
  out = Add(left, right)
}
"""


def parse(text: str) -> ir.Model:
    model = ir.from_onnx_text(text)
    return ir.passes.common.ShapeInferencePass()(model).model


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def run(model: ir.Model, seed: int = 0) -> list[Any]:
    random = np.random.default_rng(seed)
    sizes = {"b": 2, "s": 5}
    feeds = {}
    for value in model.graph.inputs:
        shape = [size if isinstance(size, int) else sizes[str(size.value)] for size in value.shape or ()]
        assert value.dtype is not None
        feeds[value.name] = random.standard_normal(shape).astype(value.dtype.numpy())
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    proto = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(proto, settings, providers=["CPUExecutionProvider"]).run(None, feeds)


def worst(left: list[Any], right: list[Any]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(left, right, strict=True))


def fused_norm() -> ir.Model:
    model = parse(NORM.replace("AXIS", "-1"))
    fuse_norms(model)
    fuse_skips(model)
    model.opset_imports[""] = 23
    return model


def test_a_residual_sum_and_its_norm_become_one_node_that_computes_the_same() -> None:
    model = fused_norm()
    assert ops(model) == ["SkipSimplifiedLayerNormalization", "Neg", "Neg"]
    assert worst(run(model), run(parse(NORM.replace("AXIS", "-1")))) < 2e-6


def test_a_norm_over_another_axis_is_left_alone() -> None:
    model = parse(NORM.replace("AXIS", "1"))
    fuse_norms(model)
    assert "ReduceMean" in ops(model)


def test_rotary_embedding_becomes_the_standard_operator_and_computes_the_same() -> None:
    model = parse(ROTARY.replace("OTHER", "f"))
    fuse_rotary(model, flat=True)
    drop_reshapes(model)
    model.opset_imports[""] = 23
    assert ops(model).count("RotaryEmbedding") == 1
    assert "Concat" not in ops(model)
    assert worst(run(model), run(parse(ROTARY.replace("OTHER", "f")))) < 2e-6


def test_rotary_tables_whose_halves_differ_are_left_alone() -> None:
    model = parse(ROTARY.replace("OTHER", "g"))
    fuse_rotary(model, flat=True)
    assert "RotaryEmbedding" not in ops(model)


def test_spelling_out_undoes_every_fusion_in_float64() -> None:
    plain, model = parse(NORM.replace("AXIS", "-1")), fused_norm()
    for wide in (plain, model):
        widen(wide)
    spell_out(model)
    assert not {"SkipSimplifiedLayerNormalization", "RMSNormalization"} & set(ops(model))
    assert worst(run(model), run(plain)) < 1e-7  # epsilon in the text is a float32
    rotary = parse(ROTARY.replace("OTHER", "f"))
    fuse_rotary(rotary, flat=True)
    rotary.opset_imports[""] = 23
    expected = parse(ROTARY.replace("OTHER", "f"))
    for wide in (rotary, expected):
        widen(wide)
    spell_out(rotary)
    assert "RotaryEmbedding" not in ops(rotary)
    assert worst(run(rotary), run(expected)) < 1e-13


def test_a_wrong_epsilon_is_seen() -> None:
    model = fused_norm()
    model.graph[0].attributes["epsilon"] = ir.AttrFloat32("epsilon", 1e-2)
    assert worst(run(model), run(fused_norm())) > 1e-4


def eager(module: Any, query: Any, key: Any, value: Any, mask: Any, **_: Any) -> Any:
    """Attention as transformers' models spell it."""
    groups = module.num_key_value_groups
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    weights = torch.softmax(query @ key.transpose(2, 3) * 0.3 + mask, -1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_grouped_attention_is_eager_attention(kv_heads: int) -> None:
    torch.manual_seed(0)
    module = SimpleNamespace(num_key_value_groups=3)
    query, key = torch.randn(2, 3 * kv_heads, 5, 4), torch.randn(2, kv_heads, 9, 4)
    value, mask = torch.randn(2, kv_heads, 9, 6), torch.randn(2, 1, 5, 9)
    assert can_group(module, query, key)
    expected, _ = eager(module, query, key, value, mask)
    actual, _ = grouped_attention(module, query, key, value, mask, eager=eager)
    assert (actual - expected).abs().max() < 1e-6
    assert module.num_key_value_groups == 3
    shifted, _ = grouped_attention(module, query, key, value, mask.roll(1, 2), eager=eager)
    assert (shifted - expected).abs().max() > 1e-3


def test_layers_with_sinks_are_not_grouped() -> None:
    module = SimpleNamespace(num_key_value_groups=3, sinks=None)
    assert not can_group(module, torch.zeros(1, 3, 1, 4), torch.zeros(1, 1, 1, 4))
