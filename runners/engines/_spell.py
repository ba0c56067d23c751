"""Operators that have no true float64 evaluation, spelled in plain ones: for the exact runner only.

ONNX does not define RotaryEmbedding for float64, and ONNX Runtime and onnx alike compute Gelu's tanh form in float64
with constants rounded to float32 (5.8e-9 off). The epsilon of norms is a float32 attribute.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from kvparity.exporter.contract.errors import EngineUnavailableError
from kvparity.exporter.contract.spec import FLOAT64_EPSILON
from kvparity.runners.engines._quantised import multiply_out, spelling

__all__ = ["spell_out"]


class _Builder:
    """Collects nodes."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []

    def __call__(self, op_type: str, *inputs: ir.Value | None, **attributes: int | list[int] | ir.Graph) -> Any:
        return self.several(op_type, 1, *inputs, **attributes)[0]

    def several(
        self, op_type: str, count: int, *inputs: ir.Value | None, **attributes: int | list[int] | ir.Graph
    ) -> Any:
        node = ir.node(op_type, list(inputs), attributes=attributes, num_outputs=count)
        self.nodes.append(node)
        return node.outputs

    def name(self, node: ir.Node, place: str = "") -> None:
        """Name what was made after the node that it stands for; values with a slash are no probes."""
        for part, made in enumerate(self.nodes):
            made.name = f"{node.name}/{place}{made.op_type}_{part}"
            for index, output in enumerate(made.outputs):
                output.name = output.name or f"{made.name}.{index}"

    def constant(self, value: Any) -> Any:
        tensor = ir.tensor(np.asarray(value))
        node = ir.node("Constant", [], attributes={"value": tensor})
        self.nodes.append(node)
        return node.outputs[0]


def spell_out(model: ir.Model) -> None:
    """Replace every such operator; the graph is float64 already."""
    _part_skips(model)
    multiply_out(model)
    _ungroup(model)
    _step_recurrences(model)
    digits = json.loads(model.metadata_props.get(FLOAT64_EPSILON, "{}"))
    for node in list(model.graph):
        spell = _SPELLED.get(node.op_type) if node.domain == "" else None
        if spell is None or not _over_last_axis(node):
            continue
        build = _Builder()
        with spelling(node):
            result = spell(build, node, digits)
        result.name = node.outputs[0].name
        build.name(node)
        model.graph.insert_before(node, build.nodes)
        node.outputs[0].replace_all_uses_with(result, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)


def _part_skips(model: ir.Model) -> None:
    """ONNX Runtime's skip norm is an Add and an RMSNormalization; without a skip it is the norm alone."""
    for node in list(model.graph):
        if node.op_type not in ("SkipSimplifiedLayerNormalization", "SimplifiedLayerNormalization"):
            continue
        skips = node.op_type.startswith("Skip")
        build = _Builder()
        total = node.inputs[0]
        for value in [*node.inputs[1:2], *node.inputs[3:4]] if skips else []:
            total = build("Add", total, value) if value is not None else total
        epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
        weight = node.inputs[2 if skips else 1]
        norm = ir.node("RMSNormalization", [total, weight], attributes={"axis": -1, "epsilon": epsilon})
        build.nodes.append(norm)
        _put(model, node, build, (norm.outputs[0], None, None, total) if skips else (norm.outputs[0],))


def _ungroup(model: ir.Model) -> None:
    """ONNX Runtime's GroupQueryAttention is plain attention over past and new rows.

    Its contract (ONNX Runtime, ContribOperators.md): query (batch, sequence, heads x head_dim), packed with keys and
    values where those are left out; ``seqlens_k`` + 1 rows of each batch row count; with ``do_rotary`` queries and
    keys are turned first, before that each head is normed where norm weights are given; a query sees the newest
    ``local_window_size`` keys, itself included; a sink is one more column of scores that is dropped again.
    """
    for node in list(model.graph):
        if node.op_type == "GroupQueryAttention":
            _refuse_unknown(node)
            build = _Builder()
            with spelling(node):
                _put(model, node, build, _grouped_attention(build, node))


def _grouped_attention(build: _Builder, node: ir.Node) -> tuple[Any, ...]:
    inputs = [*node.inputs, *[None] * 16]
    heads, kv_heads = node.attributes["num_heads"].as_int(), node.attributes["kv_num_heads"].as_int()
    query, key, value = _projections(build, inputs, heads, kv_heads)
    first = _past_rows(build, inputs[3])
    if inputs[14] is not None:
        query, key = (_head_norm(build, node, *pair) for pair in ((query, inputs[14]), (key, inputs[15])))
    if _int(node, "do_rotary", 0):
        query, key = (_turned(build, node, item, inputs) for item in (query, key))
    rows = [key, value]
    if inputs[3] is not None:
        rows = [build("Concat", old, new, axis=2) for old, new in zip(inputs[3:5], rows, strict=True)]
    keys, values = (_repeated(build, row, heads, kv_heads) for row in rows)
    scores = build("MatMul", query, build("Transpose", keys, perm=[0, 1, 3, 2]))
    scores = build("Mul", scores, _scale(build, node, query))
    cap = node.attributes["softcap"].as_float() if "softcap" in node.attributes else 0.0
    if cap:
        limit = build.constant(cap)
        scores = build("Mul", build("Tanh", build("Div", scores, limit)), limit)
    mask = inputs[10] if inputs[10] is not None else _causal(build, node, query, keys, inputs[5], first)
    scores = build("Add", scores, mask)
    if sink := inputs[11] is not None or _int(node, "smooth_softmax", 0) > 0:
        column = build("Reshape", inputs[11] or build.constant(np.zeros(heads)), _whole(build, [1, heads, 1, 1]))
        column = build("Expand", column, build("Shape", build("ReduceMax", scores, _whole(build, [3]))))
        scores = build("Concat", scores, column, axis=-1)
    shares = build("Softmax", scores, axis=-1)
    if sink:
        shares = build("Slice", shares, *(_whole(build, [number]) for number in (0, -1, 3)))
    context = build("MatMul", shares, values)
    flat = build("Reshape", build("Transpose", context, perm=[0, 2, 1, 3]), _whole(build, [0, 0, -1]))
    return flat, *rows


def _refuse_unknown(node: ir.Node) -> None:
    """Parts of the operator that are not spelled.

    Raises:
        EngineUnavailableError: Names them.
    """
    unusual = {"causal": 1, "qk_output": 0, "kv_cache_bit_width": 0}
    given = [name for name, usual in unusual.items() if _int(node, name, usual) != usual]
    given += ["query_seqlens"] if len(node.inputs) > 16 and node.inputs[16] is not None else []
    if given:
        raise EngineUnavailableError(f"exact: {node.name}: GroupQueryAttention with {given[0]} has no float64 spelling")


def _head_norm(build: _Builder, node: ir.Node, tensor: Any, weight: Any) -> Any:
    """RMS norm of each head."""
    epsilon = node.attributes["qk_norm_epsilon"].as_float() if "qk_norm_epsilon" in node.attributes else 1e-6
    axis = build.constant(np.asarray([-1], np.int64))
    mean = build("ReduceMean", build("Mul", tensor, tensor), axis, keepdims=1)
    return build("Mul", build("Div", tensor, build("Sqrt", build("Add", mean, build.constant(epsilon)))), weight)


def _int(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def _whole(build: _Builder, numbers: Sequence[int]) -> Any:
    return build.constant(np.asarray(numbers, np.int64))


def _projections(build: _Builder, inputs: Sequence[Any], heads: int, kv_heads: int) -> tuple[Any, Any, Any]:
    """(batch, heads, sequence, head_dim) of queries, keys and values, which may be packed in one tensor."""
    if inputs[1] is not None:
        return _heads(build, inputs[0], heads), *(_heads(build, value, kv_heads) for value in inputs[1:3])
    packed = _heads(build, inputs[0], heads + 2 * kv_heads)
    sizes = _whole(build, [heads, kv_heads, kv_heads])
    query, key, value = build.several("Split", 3, packed, sizes, axis=1)
    return query, key, value


def _past_rows(build: _Builder, past: Any) -> Any:
    """Rows of the past, shape (1,)."""
    if past is None:
        return _whole(build, [0])
    return build("Slice", build("Shape", past), *(_whole(build, [number]) for number in (2, 3)))


def _slots(build: _Builder, tensor: Any, start: Any) -> Any:
    """Slots of the rows of (batch, heads, rows, head_dim) from ``start`` on: (rows,)."""
    count = build("Slice", build("Shape", tensor), *(_whole(build, [number]) for number in (2, 3)))
    scalar = _whole(build, [])
    ends = (build("Reshape", item, scalar) for item in (start, build("Add", start, count)))
    return build("Range", *ends, build.constant(np.asarray(1, np.int64)))


def _positions(build: _Builder, tensor: Any, lengths: Any) -> Any:
    """Positions of new rows where none are given: the last ones of each row's ``lengths`` + 1 slots, at least 0."""
    slots = build("Unsqueeze", _slots(build, tensor, _whole(build, [0])), _whole(build, [0]))
    count = build("Slice", build("Shape", tensor), *(_whole(build, [number]) for number in (2, 3)))
    total = build("Add", build("Cast", lengths, to=int(ir.DataType.INT64)), _whole(build, [1]))
    start = build("Max", build("Sub", build("Reshape", total, _whole(build, [-1, 1])), count), _whole(build, [0]))
    return build("Add", start, slots)


def _turned(build: _Builder, node: ir.Node, tensor: Any, inputs: Sequence[Any]) -> Any:
    """Queries or keys rotated by the operator's tables, by halves or in pairs; columns beyond the tables stay."""
    positions = inputs[9] if inputs[9] is not None else _positions(build, tensor, inputs[5])
    cos, sin = (
        build("Unsqueeze", build("Gather", table, positions, axis=0), _whole(build, [1])) for table in inputs[7:9]
    )
    table = inputs[7].const_value
    half = int(table.shape.numpy()[-1]) if table is not None else int(inputs[7].shape[-1])
    ends = _whole(build, [np.iinfo(np.int64).max])
    rest = build("Slice", tensor, _whole(build, [2 * half]), ends, _whole(build, [3]))
    part = build("Slice", tensor, _whole(build, [0]), _whole(build, [2 * half]), _whole(build, [3]))
    if _int(node, "rotary_interleaved", 0):
        steps = [_whole(build, [2])]
        halves = [build("Slice", part, _whole(build, [at]), ends, _whole(build, [3]), *steps) for at in (0, 1)]
    else:
        halves = list(build.several("Split", 2, part, axis=-1, num_outputs=2))
    real = build("Sub", build("Mul", cos, halves[0]), build("Mul", sin, halves[1]))
    imaginary = build("Add", build("Mul", sin, halves[0]), build("Mul", cos, halves[1]))
    if _int(node, "rotary_interleaved", 0):
        pairs = (build("Unsqueeze", item, _whole(build, [-1])) for item in (real, imaginary))
        turned = build("Reshape", build("Concat", *pairs, axis=-1), _whole(build, [0, 0, 0, 2 * half]))
    else:
        turned = build("Concat", real, imaginary, axis=-1)
    return build("Concat", turned, rest, axis=-1)


def _scale(build: _Builder, node: ir.Node, query: Any) -> Any:
    """The factor on scores: the attribute, or 1 / sqrt(head_dim)."""
    given = node.attributes["scale"].as_float() if "scale" in node.attributes else 0.0
    if given:
        return build.constant(given)
    size = build("Slice", build("Shape", query), *(_whole(build, [number]) for number in (3, 4)))
    return build("Reciprocal", build("Sqrt", build("Cast", size, to=int(ir.DataType.DOUBLE))))


def _causal(build: _Builder, node: ir.Node, query: Any, keys: Any, lengths: Any, first: Any) -> Any:
    """What is added to scores: 0 where slot k <= q, q - k < window, and k is one of the row's ``lengths`` + 1 slots."""
    q = build("Unsqueeze", _slots(build, query, first), _whole(build, [1]))
    k = build("Unsqueeze", _slots(build, keys, _whole(build, [0])), _whole(build, [0]))
    seen = build("LessOrEqual", k, q)
    window = _int(node, "local_window_size", -1)
    if window > 0:
        seen = build("And", seen, build("Less", build("Sub", q, k), build.constant(np.asarray(window, np.int64))))
    last = build("Reshape", build("Cast", lengths, to=int(ir.DataType.INT64)), _whole(build, [-1, 1, 1, 1]))
    seen = build("And", build("Unsqueeze", seen, _whole(build, [0, 1])), build("LessOrEqual", k, last))
    return build("Where", seen, build.constant(0.0), build.constant(-1e9))


def _put(model: ir.Model, node: ir.Node, build: _Builder, values: Sequence[Any]) -> None:
    """Nodes in the place of one, their values in the place of its outputs that are read."""
    build.name(node)
    model.graph.insert_before(node, build.nodes)
    for old, new in zip(node.outputs, values, strict=False):
        if new is None:
            continue
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        if old.name:
            new.name, new.type, new.shape, old.name = old.name, old.type, old.shape, None
    model.graph.remove(node, safe=True)


def _step_recurrences(model: ir.Model) -> None:
    """LinearAttention token by token: ONNX Runtime has no float64 kernel of it.

    S = exp(g) S + k (beta (v - k^T exp(g) S))^T, without beta S = exp(g) S + k v^T; the output is q^T S.
    """
    for node in list(model.graph):
        if node.op_type != "LinearAttention":
            continue
        build, body = _Builder(), _Builder()
        query, key, value, past, decay, beta = [*node.inputs, None][:6]
        shape = build.constant(np.asarray([0, 0, node.attributes["q_num_heads"].as_int(), 1, -1], np.int64))
        across, along = [1, 0, 2, 3, 4], [1, 0, 2, 4, 3]  # (sequence, batch, heads, 1, size), or size before 1
        given = {"q": (query, across), "k": (key, along), "v": (value, across), "g": (decay, along)}
        if beta is not None:
            given["b"] = (beta, across)
        rows = [build("Transpose", build("Reshape", x, shape), perm=perm) for x, perm in given.values()]
        state, *parts = (ir.Value(name=f"{node.name}/{name}") for name in ("s", *given))
        q, k, v, g, *b = parts
        kept = body("Mul", state, body("Exp", g))
        if b:
            read = body("MatMul", body("Transpose", k, perm=[0, 1, 3, 2]), kept)
            v = body("Mul", body("Sub", v, read), b[0])
        after = body("Add", kept, body("Mul", k, v))
        outputs = [after, body("MatMul", q, after)]
        body.name(node, "step/")
        graph = ir.Graph([state, *parts], outputs, nodes=body.nodes, name="step")
        present, output = build.several("Scan", 2, past, *rows, body=graph, num_scan_inputs=len(rows))
        turned = build("Transpose", output, perm=[1, 0, 3, 2, 4])
        flat = build("Reshape", turned, build.constant(np.asarray([0, 0, -1], np.int64)))
        _put(model, node, build, (flat, present))


def _heads(build: _Builder, flat: ir.Value | None, heads: int) -> Any:
    """(batch, sequence, heads x head_dim) to (batch, heads, sequence, head_dim)."""
    parted = build("Reshape", flat, build.constant(np.asarray([0, 0, heads, -1], np.int64)))
    return build("Transpose", parted, perm=[0, 2, 1, 3])


def _repeated(build: _Builder, rows: Any, heads: int, kv_heads: int) -> Any:
    """Every key-value head as often as queries share it."""
    picks = np.repeat(np.arange(kv_heads, dtype=np.int64), heads // kv_heads)
    return build("Gather", rows, build.constant(picks), axis=1)


def _rotary(build: _Builder, node: ir.Node, _: Mapping[str, str]) -> Any:
    """All columns of (batch, heads, sequence, head_dim) or (batch, sequence, heads x head_dim), by halves.

    Tables without positions: what exports use.
    """
    x, heads = node.inputs[0], node.attributes.get("num_heads")
    count = 0 if heads is None else heads.as_int()
    flat = count > 0
    if flat:
        x = build("Reshape", x, build.constant(np.asarray([0, 0, count, -1], np.int64)))
    first, second = build.several("Split", 2, x, axis=-1, num_outputs=2)
    axis = np.asarray([2 if flat else 1], np.int64)
    cos, sin = (build("Unsqueeze", table, build.constant(axis)) for table in node.inputs[1:3])
    real = build("Sub", build("Mul", cos, first), build("Mul", sin, second))
    imaginary = build("Add", build("Mul", sin, first), build("Mul", cos, second))
    rotated = build("Concat", real, imaginary, axis=-1)
    return build("Reshape", rotated, build.constant(np.asarray([0, 0, -1], np.int64))) if flat else rotated


def _gelu(build: _Builder, node: ir.Node, _: Mapping[str, str]) -> Any:
    """0.5 x (1 + tanh(x (c0 + c1 x x))) or 0.5 x (1 + erf(x / sqrt(2)))."""
    x, approximate = node.inputs[0], node.attributes.get("approximate")
    if approximate is not None and approximate.as_string() == "tanh":
        scale = math.sqrt(2 / math.pi)
        square = build("Mul", build("Mul", x, x), build.constant(0.044715 * scale))
        inner = build("Tanh", build("Mul", x, build("Add", square, build.constant(scale))))
    else:
        inner = build("Erf", build("Mul", x, build.constant(math.sqrt(0.5))))
    return build("Mul", build("Mul", x, build.constant(0.5)), build("Add", inner, build.constant(1.0)))


def _norm(build: _Builder, node: ir.Node, digits: Mapping[str, str]) -> Any:
    """X / sqrt(mean(x x) + epsilon) * weight over the last axis, epsilon with the digits that it was traced with."""
    return build("Mul", _normal(build, node.inputs[0], node, digits), node.inputs[1])


def _layer_norm(build: _Builder, node: ir.Node, digits: Mapping[str, str]) -> Any:
    """The same of x - mean(x), then + bias."""
    x, weight, bias = [*node.inputs, None][:3]
    axis = build.constant(np.asarray([-1], np.int64))
    centered = build("Sub", x, build("ReduceMean", x, axis, keepdims=1))
    scaled = build("Mul", _normal(build, centered, node, digits), weight)
    return scaled if bias is None else build("Add", scaled, bias)


def _normal(build: _Builder, x: ir.Value | None, node: ir.Node, digits: Mapping[str, str]) -> Any:
    epsilon = node.attributes["epsilon"].as_float()
    exact = float.fromhex(digits.get(epsilon.hex(), epsilon.hex()))
    mean = build("ReduceMean", build("Mul", x, x), build.constant(np.asarray([-1], np.int64)), keepdims=1)
    return build("Div", x, build("Sqrt", build("Add", mean, build.constant(exact))))


def _depthwise(build: _Builder, node: ir.Node, _: Mapping[str, str]) -> Any:
    """A depthwise Conv along one axis, without padding: ONNX Runtime has no kernel of it for float64."""
    window, weight, bias = [*node.inputs, None][:3]
    assert weight is not None
    taps = build("Transpose", weight, perm=[2, 0, 1])  # (kernel, channels, 1)
    columns = build("Shape", window, start=2, end=3)
    last = build("Sub", columns, build("Shape", weight, start=2, end=3))  # columns of the result, less one
    one, axis = (build.constant(np.asarray([n], np.int64)) for n in (1, 2))
    total: Any = None
    for place in range(node.attributes["kernel_shape"].as_ints()[0]):
        start = build.constant(np.asarray([place], np.int64))
        end = build("Add", build("Add", last, start), one)
        tap = build("Gather", taps, build.constant(np.asarray(place, np.int64)), axis=0)
        term = build("Mul", build("Slice", window, start, end, axis), tap)
        total = term if total is None else build("Add", total, term)
    return total if bias is None else build("Add", total, build("Unsqueeze", bias, one))


def _over_last_axis(node: ir.Node) -> bool:
    """Whether a node, where it is a norm, is one over the last axis alone."""
    axis = node.attributes.get("axis")
    return axis is None or axis.as_int() == -1


_SPELLED: dict[str, Callable[[_Builder, ir.Node, Mapping[str, str]], Any]] = {
    "Conv": _depthwise,
    "RotaryEmbedding": _rotary,
    "Gelu": _gelu,
    "RMSNormalization": _norm,
    "LayerNormalization": _layer_norm,
}
