"""Every graph pass on a small graph: the operators that come out, and that the numbers stay."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

pytest.importorskip("onnxscript", reason="the exporter's extra is not installed")

from kvparity.exporter.contract.probes import kept_probes
from kvparity.exporter.contract.spec import FLOAT64_CONSTANTS
from kvparity.exporter.passes import pipeline
from kvparity.exporter.passes.cancel_reshapes import drop_reshapes
from kvparity.exporter.passes.constant_shapes import constant_targets
from kvparity.exporter.passes.expand_as_concat import repeat_by_concat
from kvparity.exporter.passes.expand_single_kv_head import repeat_one_head
from kvparity.exporter.passes.explicit_slices import plain_shapes
from kvparity.exporter.passes.float64_to_float32 import lower_to_float32
from kvparity.exporter.passes.fold_constants import drop_casts, simplify
from kvparity.exporter.passes.group_query_attention import group_queries
from kvparity.exporter.passes.half_type_constants import keep_digits
from kvparity.exporter.passes.linear_attention import spell_linear_attention, use_runtime_kernel
from kvparity.exporter.passes.node_names import tidy
from kvparity.exporter.passes.opset import to_opset
from kvparity.exporter.passes.probe_names import PROBE, name_probes
from kvparity.exporter.passes.reciprocal_to_div import divide
from kvparity.exporter.passes.rms_normalization import fuse_norms
from kvparity.exporter.passes.rotary_embedding import fuse_rotary
from kvparity.exporter.passes.skip_normalization import fuse_skips
from kvparity.exporter.passes.slice_bounds import vector_lengths

HEAD = '<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>\n'


def graph(text: str, opset: int = 18) -> ir.Model:
    """A model from ONNX's text form, constants with their types."""
    model = ir.from_onnx_text(HEAD.format(opset=opset) + text)
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        value.dtype, value.shape = value.const_value.dtype, ir.Shape(value.const_value.shape.numpy())
    return model


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def outputs(model: ir.Model) -> list[Any]:
    """What ONNX Runtime computes on seeded inputs, with every free size 3."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    random = np.random.default_rng(0)
    feeds: dict[str, Any] = {}
    for port in session.get_inputs():
        shape = [size if isinstance(size, int) else 3 for size in port.shape]
        feeds[port.name] = random.normal(size=shape).astype(np.float32)
    return session.run(None, feeds)


@dataclass(frozen=True)
class Sample:
    """A pass, a graph before it and the operators after it."""

    run: Callable[..., None]
    text: str
    after: str
    opset: int = 18
    given: tuple[object, ...] = ()


_RMS = """g (float[b,s,4] x) => (float[b,s,4] y)
<float[4] w = {1,2,3,4}, float e = {1e-6}, int64[1] a = {-1},
 float[b,s,4] q, float[b,s,1] m, float[b,s,1] t, float[b,s,1] r, float[b,s,1] i, float[b,s,4] p>
{ q = Mul(x, x) m = ReduceMean(q, a) t = Add(m, e) r = Sqrt(t) i = Reciprocal(r) p = Mul(x, i) y = Mul(p, w) }"""
_ROTATE = """g (float[b,2,s,4] x, float[b,s,2] t) => (float[b,2,s,4] y)
<int64[1] one = {1}, int64[1] zero = {0}, int64[1] half = {2}, int64[1] end = {9223372036854775807},
 int64[1] last = {3}, float[b,s,4] d, float[b,s,4] c, float[b,s,4] n,
 float[b,1,s,4] wc, float[b,1,s,4] ws, float[b,2,s,4] p,
 float[b,2,s,2] f, float[b,2,s,2] g, float[b,2,s,2] h, float[b,2,s,4] k, float[b,2,s,4] q>
{ d = Concat<axis = -1>(t, t) c = Cos(d) n = Sin(d) wc = Unsqueeze(c, one) ws = Unsqueeze(n, one)
  f = Slice(x, zero, half, last) g = Slice(x, half, end, last) h = Neg(g) k = Concat<axis = -1>(h, f)
  p = Mul(x, wc) q = Mul(k, ws) y = Add(p, q) }"""
_ATTENTION = """g (float[b,4,s,8] q, float[b,2,p,8] pk, float[b,2,s,8] nk, float[b,2,p,8] pv, float[b,2,s,8] nv,
 float[b,1,s,r] m) => (float[b,4,s,8] y, float[b,2,r,8] k, float[b,2,r,8] v)
{ k = Concat<axis = 2>(pk, nk) v = Concat<axis = 2>(pv, nv) y = Attention<scale = 1.0, softcap = 0.0>(q, k, v, m) }"""
_SKIP = """g (float[b,s,4] x, float[b,s,4] z) => (float[b,s,4] y, float[b,s,4] o)
<float[4] w = {1,2,3,4}, float[b,s,4] t, float[b,s,4] n>
{ t = Add(x, z) n = RMSNormalization<axis = -1, epsilon = 1e-6>(t, w) y = Neg(n) o = Abs(t) }"""
_RESHAPES = """g (float[b,s,8] x) => (float[b,s,8] y)
<int64[4] parts = {0,0,2,4}, int64[3] joined = {0,0,8}, float[b,s,2,4] h, float[b,2,s,4] t, float[b,s,2,4] u,
 float[b,s,8] z>
{ h = Reshape(x, parts) t = Transpose<perm = [0,2,1,3]>(h) u = Transpose<perm = [0,2,1,3]>(t)
  z = Reshape(u, joined) y = Neg(z) }"""
_ONE_HEAD = """g (float[b,1,s,4] x) => (float[b,3,s,4] y)
<int64[1] two = {2}, int64[5] wide = {1,1,3,1,1}, int64[4] flat = {0,3,-1,4}, float[b,1,1,s,4] u, float[b,1,3,s,4] e>
{ u = Unsqueeze(x, two) e = Expand(u, wide) y = Reshape(e, flat) }"""
_TARGET = """g (float[b,s,8] x) => (float[b,s,2,4] y)
<int64[2] rest = {2,4}, int64[2] n, int64[4] t> { n = Shape<end = 2>(x) t = Concat<axis = 0>(n, rest)
  y = Reshape(x, t) }"""
_LENGTH = """g (float[b,s,4] x) => (float[b,s,4] y)
<int64[1] zero = {0}, int64[1] axis = {1}, int64 none = {0}, int64[1] n, int64 l, int64 m, int64[1] e>
{ n = Shape<start = 1, end = 2>(x) l = Squeeze(n) m = Add(l, none) e = Unsqueeze(m, zero)
  y = Slice(x, zero, e, axis) }"""
_OPEN = """g (float[b,6] x) => (float[b,8] y)
<int64[1] two = {2}, int64[1] end = {9223372036854775807}, int64[1] one = {1}, int64[2] t = {0,-1}, float[b,4] s>
{ s = Slice(x, two, end, one) c = Concat<axis = 1>(s, s) y = Reshape<allowzero = 0>(c, t) }"""
_FOLDED = """g (float[b,4] x) => (float[b,4] y)
<float one = {1}, float two = {2}>
{ three = Add(one, two) same = Mul(x, one) like = CastLike(three, x) y = Mul(same, like) }"""
_RECURRENCE = """g (float[b,s,4] q, float[b,s,4] k, float[b,s,4] v, float[b,2,2,2] h, float[b,s,2] d, float[b,s,2] w)
 => (float[b,s,4] y, float[b,2,2,2] n) <float[b,s,2] a, float[b,s,2] e>
{ a = Abs(d) e = Neg(a)
  y, n = LinearAttention<q_num_heads = 2, kv_num_heads = 2, update_rule = "gated_delta",
                         scale = 1.0>(q, k, v, h, e, w) }"""
_CONCAT = "g (float[b,1,4] x) => (float[b,3,4] y) <int64[3] t = {1,3,1}> { y = Expand(x, t) }"
_DIVIDE = "g (float[b] x, float[b] z) => (float[b] y, float[b] o) { r = Reciprocal(z) y = Mul(x, r) o = Reciprocal(x) }"

SAMPLES = [
    Sample(drop_casts, "g (float[b] x) => (float[b] y) { c = CastLike(x, x) y = Neg(c) }", "Neg"),
    Sample(simplify, _FOLDED, "Mul", given=((),)),
    Sample(fuse_norms, _RMS, "RMSNormalization", 23),
    Sample(fuse_rotary, _ROTATE, "Cos Sin RotaryEmbedding", 23),
    Sample(drop_reshapes, _RESHAPES, "Neg"),
    Sample(fuse_skips, _SKIP, "SkipSimplifiedLayerNormalization Neg Abs", 23),
    Sample(plain_shapes, _OPEN, "Slice Concat Reshape"),
    Sample(repeat_one_head, _ONE_HEAD, "Expand"),
    Sample(constant_targets, _TARGET, "Reshape"),
    Sample(divide, _DIVIDE, "Div Div"),
    Sample(vector_lengths, _LENGTH, "Shape Add Slice"),
    Sample(repeat_by_concat, _CONCAT, "Concat"),
    Sample(use_runtime_kernel, _RECURRENCE, "Abs Neg LinearAttention", 27),
    Sample(spell_linear_attention, _RECURRENCE, "Abs Neg Shape Equal Squeeze If", 27, given=(True,)),
    Sample(to_opset, _RMS, "Mul ReduceMean Add Sqrt Reciprocal Mul Mul", given=(17,)),
    Sample(tidy, _RMS, "Mul ReduceMean Add Sqrt Reciprocal Mul Mul", given=("1", ())),
]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.run.__name__)
def test_operators_after_a_pass_and_the_numbers_stay(sample: Sample) -> None:
    model = graph(sample.text, sample.opset)
    before = outputs(model)
    sample.run(model, *sample.given)
    assert operators(model) == sample.after.split()
    for one, other in zip(before, outputs(model), strict=True):
        assert one.shape == other.shape
        assert float(np.abs(one.astype(np.float64) - other).max()) <= 1e-6


def test_every_pass_of_the_pipeline_has_a_small_graph() -> None:
    elsewhere = {"group_queries", "lower_to_float32", "name_ports"}  # below
    elsewhere |= {"quantize_products", "spell_selective_scan"}  # test_quantized.py, test_linear_attention.py
    assert {each.run.__name__ for each in pipeline.PASSES} - elsewhere <= {each.run.__name__ for each in SAMPLES}


def test_attention_is_grouped_and_joins_its_past_itself() -> None:
    model = graph(_ATTENTION, 23)
    group_queries(model)
    fused = next(node for node in model.graph if node.op_type == "GroupQueryAttention")
    assert [port.producer() for port in model.graph.outputs[1:]] == [fused, fused]
    assert "Concat" not in operators(model)
    assert {name: fused.attributes[name].value for name in ("num_heads", "kv_num_heads")} == {
        "num_heads": 4,
        "kv_num_heads": 2,
    }


def test_a_float64_graph_becomes_float32_and_keeps_the_digits_that_rounded() -> None:
    model = graph(
        "g (double[b] x) => (double[b] y) <double t = {0.1}, double h = {0.5}> { u = Mul(x, t) y = Add(u, h) }"
    )
    lower_to_float32(model)
    assert {value.dtype for value in [*model.graph.inputs, *model.graph.outputs]} == {ir.DataType.FLOAT}
    assert json.loads(model.metadata_props[FLOAT64_CONSTANTS]) == {"t": [(0.1).hex()]}


def test_a_half_type_graph_takes_the_digits_of_its_float64_trace() -> None:
    text = "g ({kind}[b] x) => ({kind}[b] y) <{kind} t = {{0.1}}> {{ y = Mul(x, t) }}"
    narrow, wide = graph(text.format(kind="float")), graph(text.format(kind="double"))
    keep_digits(narrow, wide)
    assert json.loads(narrow.metadata_props[FLOAT64_CONSTANTS]) == {"t": [(0.1).hex()]}


def test_a_probe_becomes_the_name_of_its_value_and_is_found_again() -> None:
    model = graph("g (float[b] x) => (float[b] y) { n = Neg(x) p = Identity(n) y = Abs(p) }")
    model.graph.node(1).outputs[0].metadata_props[PROBE] = "layers.0.mlp"
    name_probes(model)
    assert operators(model) == ["Neg", "Abs"]
    tidy(model, "1", ())
    assert [value.name for node in model.graph for value in node.outputs] == ["layers.0.mlp", "y"]
    assert kept_probes(model) == {"layers.0.mlp": "layers.0.mlp"}


def test_values_of_a_layer_are_counted_and_constants_are_numbered_by_use() -> None:
    model = graph(
        "g (float[b] x) => (float[b] y) <float a = {1}, float b = {2}> { u = Mul(x, b) v = Mul(u, b) y = Add(v, a) }"
    )
    for node in model.graph:
        node.metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'model', 'model.layers.3.mlp', 'mul']"
    tidy(model, "1", ())
    assert [node.name for node in model.graph] == ["layers.3.mlp/Mul", "layers.3.mlp/Mul_2", "layers.3.mlp/Add"]
    assert [node.outputs[0].name for node in model.graph] == ["layers.3/Mul", "layers.3/Mul_2", "y"]
    assert {name: float(v.const_value.numpy()) for name, v in model.graph.initializers.items() if v.const_value} == {
        "c0": 2.0,
        "c1": 1.0,
    }
