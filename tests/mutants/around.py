"""Faults of caches, per-layer inputs, embeddings, MLPs, residuals, weights and the head."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.mutants.attention import _half, _no_norm
from tests.mutants.editor import Change, Edit, Editor, Node, NotApplicableError, Value
from tests.mutants.mutant import Mutant

__all__ = ["MUTANTS"]
_DECODE, _PREFILL = ("decode",), ("prefill",)


def _joined_backwards(layer: int, part: str) -> Edit:
    """New rows come before the past ones."""

    def edit(e: Editor) -> None:
        node = e.maker(f"layers.{layer}.self_attn.{part}")
        past, new = node.inputs
        e.read(node, 0, new)
        e.read(node, 1, past)

    return edit


def _stale(layer: int, part: str) -> Edit:
    """The new row is the one before it again."""

    def edit(e: Editor) -> None:
        node = e.maker(f"layers.{layer}.self_attn.{part}")
        past, new = node.inputs
        size = e.add("Shape", [new], new.producer(), start=2, end=3)
        wide = e.add("Concat", [past, new], size.producer(), axis=2)
        total = e.add("Shape", [wide], wide.producer(), start=2, end=3)
        end = e.add("Sub", [total, e.constant([1], np.int64)], total.producer())
        start = e.add("Sub", [end, size], end.producer())
        old = e.add("Slice", [wide, start, end, e.constant([2], np.int64)], start.producer())
        e.read(node, 1, old)

    return edit


def _shifted(layer: int, part: str) -> Edit:
    """Past rows move one slot: the oldest goes to the end."""

    def edit(e: Editor) -> None:
        node = e.maker(f"layers.{layer}.self_attn.{part}")
        past = node.inputs[0]
        zero, one, last, axis = (e.constant([n], np.int64) for n in (0, 1, np.iinfo(np.int64).max, 2))
        head = e.add("Slice", [past, zero, one, axis], None)
        tail = e.add("Slice", [past, one, last, axis], head.producer())
        e.read(node, 0, e.add("Concat", [tail, head], tail.producer(), axis=2))

    return edit


def _neighbour(layer: int, other: int, part: str) -> Edit:
    def edit(e: Editor) -> None:
        node = e.maker(f"layers.{layer}.self_attn.{part}")
        e.read(node, 0, e.value(f"past_key_values.{other}.{part}"))

    return edit


def _presents_swapped(left: str, right: str) -> Edit:
    def edit(e: Editor) -> None:
        values = {name: e.value(name) for name in (left, right)}
        outputs = e.model.graph.outputs
        places = {name: next(i for i, o in enumerate(outputs) if o is values[name]) for name in values}
        nodes = list(e.model.graph)
        last = max((v.producer() for v in values.values()), key=nodes.index)
        copies = {name: e.add("Identity", [values[name]], last) for name in values}
        for name, other in ((left, right), (right, left)):
            new, old = copies[other], values[name]
            new.shape, new.type = old.shape, old.type
            outputs[places[name]] = new
        for name, other in ((left, right), (right, left)):
            values[name].name = f"{name}/before"
            copies[other].name = name

    return edit


def _present_unrotated(slot: int) -> Edit:
    """Attention sees rotated keys, the cache keeps unrotated ones."""

    def edit(e: Editor) -> None:
        layer = e.spec.slots[slot].layer
        source = e.value(f"layers.{layer}.self_attn.k_norm")
        seen = e.value(f"layers.{layer}.self_attn.key")
        node = e.maker(f"present.{slot}.key")
        if node.op_type != "Slice":
            raise NotApplicableError("the cache is what attention sees")
        plain = e.add("Transpose", [source], seen.producer(), perm=[0, 2, 1, 3])
        if seen.producer().op_type == "Concat":
            plain = e.add("Concat", [seen.producer().inputs[0], plain], plain.producer(), axis=2)
        e.read(node, 0, plain)

    return edit


def _kept_rows(change: int) -> Edit:
    """Sliding caches keep another number of rows."""

    def edit(e: Editor) -> None:
        slot = next(s.slot for s in e.spec.slots if s.kind == "sliding")
        node = e.before(f"present.{slot}.key", "Sub")
        e.read(node, 1, e.constant((e.spec.window or 0) - 1 + change, np.int64))

    return edit


def _oldest_rows(slot: int) -> Edit:
    """A sliding cache keeps the first rows, not the newest."""

    def edit(e: Editor) -> None:
        for part in ("key", "value"):
            node = e.maker(f"present.{slot}.{part}")
            e.read(node, 1, e.constant([0], np.int64))
            e.read(node, 2, e.constant([(e.spec.window or 0) - 1], np.int64))

    return edit


def _shared_from(layer: int, source: int, part: str) -> Edit:
    """A layer that shares keys and values reads those of another layer."""

    def edit(e: Editor) -> None:
        node, wrong = _product(e, layer, part), _product(e, source, part)
        e.read(node, 1, wrong.inputs[1])

    return edit


def _product(e: Editor, layer: int, part: str) -> Node:
    """The matrix product that reads a layer's keys or values."""
    context = f"layers.{layer}.self_attn.context"
    if part == "value":
        return e.before(context, "MatMul")
    scores = e.before(context, "Softmax").inputs[0]
    node = scores.producer()
    while node.op_type != "MatMul":
        node = next(p for v in node.inputs if (p := v.producer()) is not None and not str(v.name).startswith("mask."))
    return node


def _layer_input(layer: int, source: int) -> Edit:
    def edit(e: Editor) -> None:
        node = e.maker(f"layers.{layer}.per_layer_input")
        e.read(node, 1, e.constant(source, np.int64))

    return edit


def _mul_constant(node_of: Callable[[Editor], Node], value: float | None, factor: float = 1.0) -> Edit:
    """Replace (or multiply) the constant of a Mul."""

    def edit(e: Editor) -> None:
        node = node_of(e)
        index = e.const_input(node)
        old = node.inputs[index].const_value.numpy()
        e.read(node, index, e.constant(value if value is not None else old * factor))

    return edit


def _combination(e: Editor) -> Node:
    """(projection + embedding) / √2."""
    return e.maker("layers.0.per_layer_input").inputs[0].producer()


def _projection_scale(e: Editor) -> Node:
    """Projection · hidden^-½."""
    return next(u.node for u in e.value("per_layer_model_projection").uses() if u.node.op_type == "Mul")


def _embed_scale(name: str) -> Edit:
    return lambda e: next(n for n in e.nodes(name, "Mul"))


def _without_tokens(e: Editor) -> None:
    node = _combination(e).inputs[0].producer()
    e.read(node, 1, e.add("Mul", [node.inputs[1], e.constant(0.0)], node.inputs[1].producer()))


def _scalar_dropped(layer: int) -> Edit:
    return lambda e: e.weight(f"model.layers.{layer}.layer_scalar", np.ones_like)


def _cap_dropped(e: Editor) -> None:
    raw = e.before("logits", "MatMul").outputs[0]
    e.bypass("logits", raw)


def _cap_value(e: Editor) -> None:
    tanh = e.before("logits", "Tanh")
    scale = tanh.inputs[0].producer()
    final = e.maker("logits")
    up, down = (1.1, 1.1) if scale.op_type == "Div" else (1 / 1.1, 1.1)
    for node, factor in ((scale, up), (final, down)):
        index = e.const_input(node)
        e.read(node, index, e.constant(node.inputs[index].const_value.numpy() * factor))


def _cap_late(e: Editor) -> None:
    """Tanh before the division: everything saturates."""
    tanh = e.before("logits", "Tanh")
    e.read(tanh, 0, e.before("logits", "MatMul").outputs[0])


def _untied(e: Editor) -> None:
    table = e.value("model.embed_tokens.weight").const_value.numpy()
    other = e.constant(table + 0.01 * np.random.default_rng(3).standard_normal(table.shape).astype(np.float32))
    node = e.before("logits", "MatMul")
    transpose = node.inputs[1].producer()
    e.read(transpose, 0, other)


def _row(row: int, value: float) -> Change:
    def change(array: np.ndarray) -> np.ndarray:
        array[row] *= np.float32(value)
        return array

    return change


def _one(array: np.ndarray) -> np.ndarray:
    array[0, 0] *= np.float32(1.01)
    return array


def _bfloat16(array: np.ndarray) -> np.ndarray:
    bits = (array.view(np.uint32) + 0x8000) & np.uint32(0xFFFF0000)
    return bits.view(np.float32)


def _activation(scope: str, form: str) -> Edit:
    """Another activation in a module."""

    def edit(e: Editor) -> None:
        inside = [n for n in e.model.graph if (n.name or "").startswith(scope + "/")]
        if not inside:
            raise NotApplicableError(f"no {scope}")
        source, last = inside[0].inputs[0], inside[-1]
        anchor = last
        if form == "silu":
            gate = e.add("Sigmoid", [source], anchor)
            made = e.add("Mul", [source, gate], gate.producer())
        else:
            small = e.add("Mul", [source, e.constant(0.5**0.5)], anchor)
            erf = e.add("Erf", [small], small.producer())
            one = e.add("Add", [erf, e.constant(1.0)], erf.producer())
            half = e.add("Mul", [source, e.constant(0.5)], one.producer())
            made = e.add("Mul", [half, one], half.producer())
        for use in tuple(last.outputs[0].uses()):
            if use.node not in e.mine:
                use.node.replace_input_with(use.idx, made)

    return edit


def _all_activations(e: Editor) -> None:
    for layer in range(len(e.spec.layers)):
        _activation(f"layers.{layer}.mlp.act_fn", "erf")(e)
        _activation(f"layers.{layer}.act_fn", "erf")(e)


def _swapped(layer: int) -> Edit:
    """Gate and up are exchanged."""

    def edit(e: Editor) -> None:
        gate, up = e.value(f"layers.{layer}.mlp.gate_proj"), e.value(f"layers.{layer}.mlp.up_proj")
        for use in [*gate.uses(), *up.uses()]:
            use.node.replace_input_with(use.idx, up if use.node.inputs[use.idx] is gate else gate)
        order = list(e.model.graph)
        for node in [n for n in order if (n.name or "").startswith(f"layers.{layer}.mlp.act_fn/")]:
            e.model.graph.remove(node)
            e.model.graph.insert_before(e.nodes(f"layers.{layer}.mlp", "Mul")[-1], node)

    return edit


def _residual(layer: int, keep: str) -> Edit:
    """The residual behind attention: dropped, or added twice."""

    def edit(e: Editor) -> None:
        branch = e.value(f"layers.{layer}.post_attention_layernorm")
        node = next(u.node for u in branch.uses() if u.node.op_type == "Add")
        index = 0 if node.inputs[0] is not branch else 1
        if keep == "dropped":
            zero = e.add("Mul", [node.inputs[index], e.constant(0.0)], node.inputs[index].producer())
            e.read(node, index, zero)
        else:
            twice = e.add("Add", [node.inputs[index]] * 2, node.inputs[index].producer())
            e.read(node, index, twice)

    return edit


def _values_from_keys(layer: int) -> Edit:
    def edit(e: Editor) -> None:
        prefix = f"layers.{layer}.self_attn"
        source, keys = e.value(f"{prefix}.v_proj"), e.value(f"{prefix}.k_proj")
        for use in tuple(source.uses()):
            use.node.replace_input_with(use.idx, keys)

    return edit


def _half_product(probe: str) -> Edit:
    """Inputs and result of a matrix product in float16."""

    def edit(e: Editor) -> None:
        node = e.maker(probe)
        e.read(node, 0, _half(e, node.inputs[0]))
        e.rewrite(probe, lambda v: _half(e, v))

    return edit


def _logits_rolled(e: Editor) -> None:
    """Every position gets the logits of the one before; the first keeps its own."""

    def make(v: Value) -> Value:
        zero, one, last, minus, axis = (e.constant([n], np.int64) for n in (0, 1, np.iinfo(np.int64).max, -1, 1))
        del last
        head = e.add("Slice", [v, zero, one, axis], v.producer())
        rest = e.add("Slice", [v, zero, minus, axis], head.producer())
        return e.add("Concat", [head, rest], rest.producer(), axis=1)

    e.rewrite("logits", make)


def _w(layer: int, name: str) -> str:
    return f"model.layers.{layer}.{name}.weight"


_A = "layers.{}.self_attn.{}".format

MUTANTS: tuple[Mutant, ...] = (
    Mutant("cache-order", "new rows are put before the past ones", _A(1, "key"), _joined_backwards(1, "key"), _DECODE),
    Mutant("cache-shifted", "past rows move by one slot", _A(0, "value"), _shifted(0, "value"), _DECODE, quick=True),
    Mutant("cache-stale", "the newest row is the one before it again", _A(3, "value"), _stale(3, "value"), _DECODE),
    Mutant(
        "cache-unrotated",
        "the cache keeps unrotated keys, attention sees rotated ones",
        "present.0.key",
        _present_unrotated(0),
    ),
    Mutant("cache-short", "sliding caches are one row short", "present.*", _kept_rows(-1)),
    Mutant("cache-long", "sliding caches are one row long", "present.*", _kept_rows(1)),
    Mutant("cache-oldest", "a sliding cache keeps the oldest rows", "present.1.*", _oldest_rows(1), _PREFILL),
    Mutant(
        "cache-neighbour",
        "a layer reads the past of the layer before it",
        _A(1, "key"),
        _neighbour(1, 0, "key"),
        _DECODE,
    ),
    Mutant(
        "presents-swapped",
        "two layers' caches are handed out under each other's name",
        "present.0.value|present.1.value",
        _presents_swapped("present.0.value", "present.1.value"),
    ),
    Mutant(
        "sharing-wrong", "a sharing layer reads the keys of another layer", _A(5, "context"), _shared_from(5, 1, "key")
    ),
    Mutant(
        "sharing-wrong-full",
        "a sharing full layer reads the values of another layer",
        _A(6, "context"),
        _shared_from(6, 2, "value"),
    ),
    Mutant(
        "ple-neighbour",
        "a layer gets the per-layer input of the one before",
        "layers.3.per_layer_input",
        _layer_input(3, 2),
        quick=True,
    ),
    Mutant(
        "ple-combination",
        "per-layer inputs are not divided by √2",
        "layers.*.per_layer_input",
        _mul_constant(_combination, 1.0),
    ),
    Mutant(
        "ple-projection-scale",
        "the projection of per-layer inputs is not scaled",
        "per_layer_projection_norm",
        _mul_constant(_projection_scale, 1.0),
    ),
    Mutant(
        "ple-embedding-scale",
        "per-layer embeddings are not scaled",
        "embed_tokens_per_layer",
        _mul_constant(_embed_scale("embed_tokens_per_layer"), 1.0),
    ),
    Mutant("ple-tokens", "per-layer inputs lack the token's own part", "layers.*.per_layer_input", _without_tokens),
    Mutant(
        "ple-norm",
        "the norm of per-layer inputs is left out",
        "per_layer_projection_norm",
        _no_norm("per_layer_projection_norm"),
    ),
    Mutant(
        "embed-scale-rounded",
        "the embedding scale is rounded to two decimals",
        "embed_tokens",
        _mul_constant(_embed_scale("embed_tokens"), 5.66),
    ),
    Mutant(
        "embed-scale-half",
        "the embedding scale went through float16",
        "embed_tokens",
        _mul_constant(_embed_scale("embed_tokens"), float(np.float16(32**0.5))),
    ),
    Mutant(
        "embed-scale", "embeddings are not scaled", "embed_tokens", _mul_constant(_embed_scale("embed_tokens"), 1.0)
    ),
    Mutant("layer-scalar", "one layer's scalar is left out", "layers.3", _scalar_dropped(3)),
    Mutant(
        "layer-scalar-last",
        "the last layer's scalar is left out",
        "layers.6",
        _scalar_dropped(6),
    ),
    Mutant("softcap-dropped", "logits are not capped", "logits", _cap_dropped),
    Mutant("softcap-value", "logits are capped at 5.5, not 5", "logits", _cap_value),
    Mutant("softcap-late", "tanh comes before the division", "logits", _cap_late),
    Mutant("head-untied", "the head has weights of its own, 1 % off", "lm_head|logits", _untied),
    Mutant(
        "weight-row-zero",
        "one row of a weight is zero",
        "layers.2.mlp.up_proj",
        lambda e: e.weight(_w(2, "mlp.up_proj"), _row(3, 0.0)),
    ),
    Mutant(
        "weight-1-percent",
        "one weight is off by 1 %",
        "layers.4.self_attn.o_proj",
        lambda e: e.weight(_w(4, "self_attn.o_proj"), _one),
    ),
    Mutant(
        "embedding-row",
        "the embedding of the last token, which is its head too, is off by 1 %",
        "embed_tokens|lm_head|logits",
        lambda e: e.weight("model.embed_tokens.weight", _row(-1, 1.01)),
    ),
    Mutant(
        "ple-row",
        "a per-layer embedding that few prompts use is off by 1 %",
        "embed_tokens_per_layer",
        lambda e: e.weight("model.embed_tokens_per_layer.weight", _row(-2, 1.01)),
    ),
    Mutant(
        "weight-bfloat16",
        "one weight went through bfloat16",
        "layers.1.mlp.gate_proj",
        lambda e: e.weight(_w(1, "mlp.gate_proj"), _bfloat16),
    ),
    Mutant(
        "weight-ulp",
        "one weight is off by one unit in the last place",
        "layers.5.mlp.down_proj",
        lambda e: e.weight(_w(5, "mlp.down_proj"), lambda w: _ulp(w)),
    ),
    Mutant("gelu-erf", "every GELU is the erf form", "layers.0.*", _all_activations),
    Mutant(
        "gelu-erf-one",
        "one GELU is the erf form",
        "layers.3.per_layer_projection",
        _activation("layers.3.act_fn", "erf"),
    ),
    Mutant("silu", "one activation is SiLU", "layers.2.mlp.down_proj", _activation("layers.2.mlp.act_fn", "silu")),
    Mutant("gate-up-swapped", "gate and up are exchanged", "layers.1.mlp.down_proj", _swapped(1)),
    Mutant("residual-dropped", "the residual behind attention is left out", "layers.2.*", _residual(2, "dropped")),
    Mutant("residual-twice", "the residual behind attention is added twice", "layers.4.*", _residual(4, "twice")),
    Mutant("values-from-keys", "values come from the key projection", _A(0, "v_norm"), _values_from_keys(0)),
    Mutant(
        "half-accumulation",
        "one matrix product in float16",
        "layers.1.mlp.down_proj",
        _half_product("layers.1.mlp.down_proj"),
    ),
    Mutant("logits-rolled", "logits are off by one position", "logits", _logits_rolled, _PREFILL),
)


def _ulp(array: np.ndarray) -> np.ndarray:
    place = np.unravel_index(np.abs(array).argmax(), array.shape)  # the largest weight has the largest unit
    array[place] = np.nextafter(array[place], np.float32(np.inf))
    return array
