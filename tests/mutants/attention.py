"""Faults of masks, rotation, norms of queries and keys, and attention itself."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from tests.mutants.editor import Change, Edit, Editor, Node, Value
from tests.mutants.mutant import Mutant

__all__ = ["MUTANTS"]


def _window(change: int) -> Edit:
    def edit(e: Editor) -> None:
        node = e.before("mask.sliding", "Less")
        e.read(node, 1, e.constant((e.spec.window or 0) + change, np.int64))

    return edit


def _mask(source: str, *layers: int) -> Edit:
    """The layers read another kind's mask."""

    def edit(e: Editor) -> None:
        other = e.value(source)
        for layer in layers:
            node = e.before(f"layers.{layer}.self_attn.context", "Softmax").inputs[0].producer()
            assert node is not None
            index = next(i for i, v in enumerate(node.inputs) if v is not None and str(v.name).startswith("mask."))
            e.read(node, index, other)

    return edit


def _causal(op_type: str, shift: int) -> Edit:
    def edit(e: Editor) -> None:
        for name in ("mask.full", "mask.sliding"):
            node = e.before(name, "LessOrEqual")
            if node.inputs[1].producer() in e.mine:
                continue  # both masks share the comparison
            if op_type == "Less":
                e.read(node, 1, e.add("Sub", [node.inputs[1], e.constant(1, np.int64)], node.inputs[1].producer()))
            else:
                e.read(node, 1, e.add("Add", [node.inputs[1], e.constant(shift, np.int64)], node.inputs[1].producer()))

    return edit


def _ignore_padding(*names: str) -> Edit:
    def edit(e: Editor) -> None:
        for name in names:
            node = e.before(name, "Equal")
            e.read(node, 1, e.constant(-1, np.int64))

    return edit


def _fill(value: float) -> Edit:
    def edit(e: Editor) -> None:
        for name in ("mask.full", "mask.sliding"):
            e.read(e.maker(name), 2, e.constant(value))

    return edit


def _frequencies(kind: str, change: Change) -> Edit:
    return lambda e: e.weight(f"model.rotary_emb.{kind}_attention_inv_freq", change)


def _theta(theta: float) -> Change:
    return lambda old: (theta ** (-np.arange(old.size) / old.size)).astype(np.float32)


def _all_rotated(old: np.ndarray) -> np.ndarray:
    return (1e6 ** (-np.arange(old.size) / old.size)).astype(np.float32)


def _short_denominator(old: np.ndarray) -> np.ndarray:
    live = max(int((old != 0).sum()), 1)
    return np.where(old != 0, 1e6 ** (-np.arange(old.size) / live), 0).astype(np.float32)


def _negate(name: str) -> Edit:
    return lambda e: e.rewrite(name, lambda v: e.add("Neg", [v], v.producer()))


def _positions(change: Callable[[Editor, Value], Value]) -> Edit:
    """Rotary positions are computed from ``position_ids`` in another way."""

    def edit(e: Editor) -> None:
        ids = e.value("position_ids")
        readers = [use for use in ids.uses() if use.node.op_type != "Shape"]
        new = change(e, ids)
        for use in readers:
            use.node.replace_input_with(use.idx, new)

    return edit


def _plus_one(e: Editor, ids: Value) -> Value:
    return e.add("Add", [ids, e.constant(1, np.int64)], None)


def _from_slots(e: Editor, ids: Value) -> Value:
    """Slot numbers instead of positions: right until a row is padded."""
    mask = e.value("attention_mask")
    ones = e.add("Equal", [mask, mask], None)
    count = e.add("Cast", [ones], ones.producer(), to=int(ir.DataType.INT64))
    slots = e.add("CumSum", [count, e.constant(1, np.int64)], count.producer())
    zero = e.add("Sub", [slots, e.constant(1, np.int64)], slots.producer())
    size = e.add("Shape", [ids], zero.producer(), start=1, end=2)
    start = e.add("Neg", [size], size.producer())
    end, axis = e.constant([np.iinfo(np.int64).max], np.int64), e.constant([1], np.int64)
    return e.add("Slice", [zero, start, end, axis], start.producer())


def _unrotated(part: str, layer: int) -> Edit:
    """Queries or new keys without rotation."""

    def edit(e: Editor) -> None:
        prefix = f"layers.{layer}.self_attn"
        source = e.value(f"{prefix}.{part[0]}_norm")
        value = _new_rows(e, layer, part)
        e.rewrite(str(value.name), lambda v: e.add("Transpose", [source], v.producer(), perm=[0, 2, 1, 3]))

    return edit


def _new_rows(e: Editor, layer: int, part: str) -> Value:
    """The rows that this call adds: (batch, kv_heads, sequence, head_dim)."""
    value = e.value(f"layers.{layer}.self_attn.{part}")
    node = value.producer()
    assert node is not None
    joined = node.inputs[1] if node.op_type == "Concat" else value
    assert joined is not None
    return joined


def _rotated_values(layer: int) -> Edit:
    def edit(e: Editor) -> None:
        key = _new_rows(e, layer, "key").producer()
        assert key is not None
        total = key.inputs[0].producer()  # Transpose(Add(x cos, rotated x sin))
        cos, sin = total.inputs[0].producer().inputs[1], total.inputs[1].producer().inputs[1]
        rows = _new_rows(e, layer, "value")
        source = e.value(f"layers.{layer}.self_attn.v_norm")
        half = e.spec.slots[layer].head_dim // 2
        zero, middle, last, axis = (e.constant([n], np.int64) for n in (0, half, 2 * half, 3))
        after = max(source.producer(), total, key=list(e.model.graph).index)
        left = e.add("Slice", [source, zero, middle, axis], after)
        right = e.add("Slice", [source, middle, last, axis], left.producer())
        negative = e.add("Neg", [right], right.producer())
        turned = e.add("Concat", [negative, left], negative.producer(), axis=-1)
        straight = e.add("Mul", [source, cos], turned.producer())
        crossed = e.add("Mul", [turned, sin], straight.producer())
        rotated = e.add("Add", [straight, crossed], crossed.producer())
        e.read(rows.producer(), 0, rotated)
        _move_after(e, rows.producer(), rotated.producer())

    return edit


def _move_after(e: Editor, node: Node, anchor: Node) -> None:
    """Keep the graph in order after a node reads a later value."""
    order = list(e.model.graph)
    if order.index(node) < order.index(anchor):
        e.model.graph.remove(node)
        e.model.graph.insert_after(anchor, node)


def _interleaved(layer: int) -> Edit:
    """rotate_half pairs neighbours instead of halves."""

    def edit(e: Editor) -> None:
        prefix = f"layers.{layer}.self_attn"
        source = e.value(f"{prefix}.q_norm")
        size = e.spec.slots[layer].head_dim
        order = np.arange(size).reshape(-1, 2)[:, ::-1].ravel()
        signs = np.tile([-1.0, 1.0], size // 2)
        turned = next(n for n in e.nodes(prefix, "Concat") if _reads(n, source, 3))
        taken = e.add("Gather", [source, e.constant(order, np.int64)], source.producer(), axis=3)
        signed = e.add("Mul", [taken, e.constant(signs)], taken.producer())
        turned.outputs[0].replace_all_uses_with(signed)

    return edit


def _reads(node: Node, source: Value, depth: int) -> bool:
    return depth > 0 and any(
        v is not None and (v is source or (v.producer() is not None and _reads(v.producer(), source, depth - 1)))
        for v in node.inputs
    )


def _no_norm(probe: str) -> Edit:
    """The norm is left out: its input is handed on."""

    def edit(e: Editor) -> None:
        e.bypass(probe, _norm_input(e, probe))

    return edit


def _norm_input(e: Editor, probe: str) -> Value:
    node = e.before(probe, "ReduceMean")
    square = node.inputs[0].producer()
    assert square is not None
    source = square.inputs[0]
    assert source is not None
    return source


def _eps(probe: str | None, value: float) -> Edit:
    def edit(e: Editor) -> None:
        means = (
            [n for n in e.model.graph if n.op_type == "ReduceMean"]
            if probe is None
            else [e.before(probe, "ReduceMean")]
        )
        for mean in means:
            node = next(use.node for use in mean.outputs[0].uses() if use.node.op_type == "Add")
            e.read(node, e.const_input(node), e.constant(value))

    return edit


def _centred(probe: str) -> Edit:
    """LayerNorm instead of RMSNorm: the mean is taken off first."""

    def edit(e: Editor) -> None:
        source = _norm_input(e, probe)
        readers = [u for u in source.uses() if (u.node.name or "").startswith(probe + "/")]
        mean = e.add("ReduceMean", [source, e.constant([-1], np.int64)], source.producer(), keepdims=1)
        centred = e.add("Sub", [source, mean], mean.producer())
        for use in readers:
            use.node.replace_input_with(use.idx, centred)

    return edit


def _scores(factor: float, *layers: int) -> Edit:
    def edit(e: Editor) -> None:
        for layer in layers or range(len(e.spec.layers)):
            node = e.before(f"layers.{layer}.self_attn.context", "Softmax").inputs[0].producer()
            index = 0 if node.inputs[0].producer().op_type == "MatMul" else 1
            score = node.inputs[index]
            e.read(node, index, e.add("Mul", [score, e.constant(factor)], score.producer()))

    return edit


def _softmax(layer: int, change: Callable[[Editor, Value], Value]) -> Edit:
    """Rewrite what goes into a layer's softmax."""

    def edit(e: Editor) -> None:
        node = e.before(f"layers.{layer}.self_attn.context", "Softmax")
        e.read(node, 0, change(e, node.inputs[0]))

    return edit


def _attention_cap(e: Editor, scores: Value) -> Value:
    node = scores.producer()
    index = 0 if node.inputs[0].producer().op_type == "MatMul" else 1
    raw = node.inputs[index]
    small = e.add("Mul", [raw, e.constant(1 / 20)], raw.producer())
    bent = e.add("Tanh", [small], small.producer())
    e.read(node, index, e.add("Mul", [bent, e.constant(20.0)], bent.producer()))
    return scores


def _half(e: Editor, value: Value) -> Value:
    low = e.add("Cast", [value], value.producer(), to=int(ir.DataType.FLOAT16))
    return e.add("Cast", [low], low.producer(), to=int(ir.DataType.FLOAT))


def _heads(probe: str, axis: int, order: list[int]) -> Edit:
    return lambda e: e.rewrite(
        probe, lambda v: e.add("Gather", [v, e.constant(order, np.int64)], v.producer(), axis=axis)
    )


def _repeat(layer: int, part: str, order: list[int]) -> Edit:
    """The key-value heads that the query heads read, after they were repeated."""

    def edit(e: Editor) -> None:
        softmax = e.before(f"layers.{layer}.self_attn.context", "Softmax")
        if part == "key":
            score = softmax.inputs[0].producer()
            matmul = score.inputs[0].producer() if score.op_type != "MatMul" else score
            node, index = matmul, 1
        else:
            node, index = e.before(f"layers.{layer}.self_attn.context", "MatMul"), 1
        rows = node.inputs[index]
        taken = e.add("Gather", [rows, e.constant(order, np.int64)], rows.producer(), axis=1)
        e.read(node, index, taken)

    return edit


def _wrong_axis(layer: int) -> Edit:
    def edit(e: Editor) -> None:
        e.before(f"layers.{layer}.self_attn.context", "Softmax").attributes["axis"] = ir.AttrInt64("axis", 1)

    return edit


_SLIDING, _FULL = "mask.sliding", "mask.full"
_A = "layers.{}.self_attn.{}".format

MUTANTS: tuple[Mutant, ...] = (
    Mutant("window+1", "sliding layers see one row too many", _SLIDING, _window(1), quick=True),
    Mutant("window-1", "sliding layers see one row too few", _SLIDING, _window(-1)),
    Mutant("window+1-decode", "one row too many, in the decode graph alone", _SLIDING, _window(1), ("decode",)),
    Mutant("window-1-decode", "one row too few, in the decode graph alone", _SLIDING, _window(-1), ("decode",)),
    Mutant("window-dropped", "sliding layers see everything", _SLIDING, _window(1 << 20)),
    Mutant(
        "masks-swapped", "sliding layers use the full mask", _A("*", "context"), _mask(_FULL, 0, 1, 3), ("prefill",)
    ),
    Mutant(
        "full-gets-sliding", "one full layer uses the sliding mask", _A(2, "context"), _mask(_SLIDING, 2), ("prefill",)
    ),
    Mutant("causal+1", "queries see one token of the future", "mask.*", _causal("LessOrEqual", 1)),
    Mutant("causal-1", "queries do not see their own token", "mask.*", _causal("Less", -1)),
    Mutant("causal-dropped", "queries see the whole future", "mask.*", _causal("LessOrEqual", 1 << 20)),
    Mutant("padding-ignored", "left padding is not masked", "mask.*", _ignore_padding(_FULL, _SLIDING), quick=True),
    Mutant("padding-ignored-full", "left padding is not masked in full layers", "mask.*", _ignore_padding(_FULL)),
    Mutant("mask-weak", "blocked entries are -10, not far below", "mask.*", _fill(-10.0)),
    Mutant(
        "mask-fill",
        "blocked entries are -1e5 instead of -1e9",
        "mask.*",
        _fill(-1e5),
        equivalent="exp(-1e5) is 0 in float64 as exp(-1e9) is; rows that are padding only are nobody's",
    ),
    Mutant(
        "rope-theta", "sliding layers rotate with base 1e6", "rotary_emb.sliding*", _frequencies("sliding", _theta(1e6))
    ),
    Mutant(
        "rope-theta-full", "full layers rotate with base 1e4", "rotary_emb.full*", _frequencies("full", _theta(1e4))
    ),
    Mutant(
        "rope-factor",
        "positions of full layers are divided by 2",
        "rotary_emb.full*",
        _frequencies("full", lambda a: a / 2),
    ),
    Mutant(
        "rope-all-dims", "full layers rotate every dimension", "rotary_emb.full*", _frequencies("full", _all_rotated)
    ),
    Mutant(
        "rope-denominator",
        "proportional rope over the rotated part only",
        "rotary_emb.full*",
        _frequencies("full", _short_denominator),
    ),
    Mutant(
        "rope-direction",
        "sliding layers rotate backwards",
        "rotary_emb.sliding*",
        _negate("rotary_emb.sliding_attention.sin"),
    ),
    Mutant("rope-interleaved", "one layer's queries pair neighbours, not halves", _A(1, "query"), _interleaved(1)),
    Mutant(
        "positions+1-decode",
        "positions are one too high from decode on",
        "rotary_emb.*",
        _positions(_plus_one),
        ("decode",),
        quick=True,
    ),
    Mutant("positions+1", "positions are one too high everywhere", "rotary_emb.*", _positions(_plus_one)),
    Mutant("positions-slots", "positions count padding", "rotary_emb.*", _positions(_from_slots)),
    Mutant("query-unrotated", "one layer's queries are not rotated", _A(3, "query"), _unrotated("query", 3)),
    Mutant("key-unrotated", "one layer's keys are cached before rotation", _A(2, "key"), _unrotated("key", 2)),
    Mutant("value-rotated", "values are rotated like keys", _A(0, "value"), _rotated_values(0)),
    Mutant("q-norm-missing", "queries are not normalised", _A(1, "q_norm"), _no_norm(_A(1, "q_norm"))),
    Mutant("k-norm-missing", "keys are not normalised", _A(0, "k_norm"), _no_norm(_A(0, "k_norm"))),
    Mutant("v-norm-missing", "values are not normalised", _A(2, "v_norm"), _no_norm(_A(2, "v_norm"))),
    Mutant(
        "q-norm+1",
        "norm weight is 1 + w, as in other Gemmas",
        _A(3, "q_norm"),
        lambda e: e.weight("model.layers.3.self_attn.q_norm.weight", lambda w: w + 1),
    ),
    Mutant(
        "norm+1",
        "norm weight is 1 + w",
        "layers.0.input_layernorm",
        lambda e: e.weight("model.layers.0.input_layernorm.weight", lambda w: w + 1),
    ),
    Mutant("eps", "every norm has epsilon 1e-5", "*norm", _eps(None, 1e-5)),
    Mutant(
        "eps-one",
        "one norm has epsilon 1e-5",
        "layers.4.post_attention_layernorm",
        _eps("layers.4.post_attention_layernorm", 1e-5),
    ),
    Mutant(
        "norm-1e-5",
        "one norm's weight is off by 1e-5 of itself",
        "layers.2.input_layernorm",
        lambda e: e.weight("model.layers.2.input_layernorm.weight", lambda w: w * np.float32(1 + 1e-5)),
        quick=True,
    ),
    Mutant(
        "layer-norm",
        "the mean is taken off before a norm",
        "layers.1.pre_feedforward_layernorm",
        _centred("layers.1.pre_feedforward_layernorm"),
    ),
    Mutant(
        "post-norm-missing",
        "the norm behind attention is left out",
        "layers.3.post_attention_layernorm",
        _no_norm("layers.3.post_attention_layernorm"),
    ),
    Mutant(
        "final-norm-weight",
        "the last norm has no weight",
        "norm",
        lambda e: e.weight("model.norm.weight", np.ones_like),
    ),
    Mutant("attention-scale", "scores are scaled by 1/√d in one layer", _A(0, "context"), _scores(0.25, 0)),
    Mutant("attention-scale-all", "scores are scaled by 1/√d in every layer", _A("*", "context"), _scores(0.25)),
    Mutant("attention-cap", "scores are capped as in Gemma 2", _A(4, "context"), _softmax(4, _attention_cap)),
    Mutant("softmax-axis", "softmax over heads", _A(1, "context"), _wrong_axis(1)),
    Mutant("softmax-half", "scores in float16", _A(2, "context"), _softmax(2, _half)),
    Mutant(
        "softmax-shift",
        "one is added to every score",
        _A(2, "context"),
        _softmax(2, lambda e, v: e.add("Add", [v, e.constant(1.0)], v.producer())),
        equivalent="softmax does not change when a constant is added to a row",
    ),
    Mutant("heads-permuted", "two query heads are exchanged", _A(1, "query"), _heads(_A(1, "query"), 1, [1, 0, 2, 3])),
    Mutant(
        "heads-permuted-out",
        "two heads are exchanged before the output projection",
        _A(2, "context"),
        _heads(_A(2, "context"), 2, [0, 2, 1, 3]),
    ),
    Mutant(
        "kv-heads-tiled",
        "key heads are tiled where they should be repeated",
        _A(0, "context"),
        _repeat(0, "key", [0, 2, 1, 3]),
        graphs=("prefill",),  # decode graphs repeat no heads
    ),
    Mutant(
        "kv-head-wrong",
        "every query head reads the first value head",
        _A(3, "context"),
        _repeat(3, "value", [0, 0, 0, 0]),
        graphs=("prefill",),
        quick=True,
    ),
)
