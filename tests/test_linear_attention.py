"""LinearAttention spelled in plain operators against the recurrence token by token."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

onnxruntime = pytest.importorskip("onnxruntime")

HEADS, KEY, VALUE, BATCH = 3, 8, 5, 2
Float = npt.NDArray[Any]


def session(rule: str, decays: int, *, few: bool, dtype: Any) -> Any:
    """A graph of one LinearAttention, spelled out."""
    from kvparity.exporter.passes.linear_attention import spell_linear_attention

    kind = ir.TensorType(ir.DataType.DOUBLE if dtype == np.float64 else ir.DataType.FLOAT)

    def value(name: str, shape: list[Any]) -> ir.Value:
        return ir.Value(name=name, type=kind, shape=ir.Shape(shape))

    inputs = [value(name, ["batch", "sequence", None]) for name in ("query", "key", "value")]
    inputs += [value("state", ["batch", HEADS, KEY, VALUE]), value("decay", ["batch", "sequence", decays])]
    if rule == "gated_delta":
        inputs.append(value("beta", ["batch", "sequence", HEADS]))
    attributes = {"q_num_heads": HEADS, "kv_num_heads": HEADS, "scale": 1.0, "update_rule": rule}
    node = ir.node("LinearAttention", inputs, attributes=attributes, num_outputs=2, name="rule")
    shapes: dict[str, list[Any]] = {
        "output": ["batch", "sequence", HEADS * VALUE],
        "present": ["batch", HEADS, KEY, VALUE],
    }
    for output, (name, shape) in zip(node.outputs, shapes.items(), strict=True):
        output.name, output.type, output.shape = name, kind, ir.Shape(shape)
    graph = ir.Graph(inputs, list(node.outputs), nodes=[node], opset_imports={"": 18}, name="main")
    model = ir.Model(graph, ir_version=8)
    spell_linear_attention(model, few=few)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )


def recurrence(given: dict[str, Float]) -> tuple[Float, Float]:
    """Output and state after all tokens, in float64."""
    batch, tokens = given["query"].shape[:2]
    names = ("query", "key", "value", "decay", "beta")
    wide = {name: given[name].astype(np.float64).reshape(batch, tokens, HEADS, -1) for name in names if name in given}
    state, outputs = given["state"].astype(np.float64), []
    for token in range(tokens):
        query, key, value = (wide[name][:, token][:, :, None] for name in names[:3])
        state = state * np.exp(wide["decay"][:, token])[..., None]
        if "beta" in wide:
            value = (value - key @ state) * wide["beta"][:, token][:, :, None]
        state = state + np.swapaxes(key, 2, 3) * value
        outputs.append((query @ state)[:, :, 0].reshape(batch, -1))
    return np.stack(outputs, 1), state


def draw(tokens: int, decays: int, rule: str, dtype: Any) -> dict[str, Float]:
    """Inputs with strong and weak decays; past 100 tokens all keys are equal, the worst case for the inverse."""
    random = np.random.default_rng(tokens)
    key = random.normal(size=(BATCH, tokens, HEADS, KEY))
    key /= np.linalg.norm(key, axis=-1, keepdims=True)
    if tokens > 100:
        key[:] = key[:, :1]
    decay = -np.exp(random.normal(size=(BATCH, tokens, decays)) - 2)
    decay[:, ::7] *= 50
    given = {
        "query": random.normal(size=(BATCH, tokens, HEADS * KEY)),
        "key": key.reshape(BATCH, tokens, -1),
        "value": random.normal(size=(BATCH, tokens, HEADS * VALUE)),
        "state": random.normal(size=(BATCH, HEADS, KEY, VALUE)),
        "decay": decay,
    }
    if rule == "gated_delta":
        given["beta"] = 2 / (1 + np.exp(-3 * random.normal(size=(BATCH, tokens, HEADS))))
    return {name: array.astype(dtype) for name, array in given.items()}


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("decays", [HEADS, HEADS * KEY])
@pytest.mark.parametrize("rule", ["gated", "gated_delta"])
def test_chunks_of_matrix_products_are_the_recurrence(rule: str, decays: int, few: bool) -> None:
    run = session(rule, decays, few=few, dtype=np.float64)
    for tokens in (1, 2, 15, 16, 17, 63, 64, 65, 131):
        given = draw(tokens, decays, rule, np.float64)
        output, present = run.run(["output", "present"], given)
        wanted, state = recurrence(given)
        assert np.abs(output - wanted).max() < 1e-11, tokens
        assert np.abs(present - state).max() < 1e-11, tokens


@pytest.mark.parametrize("rule", ["gated", "gated_delta"])
def test_float32_keeps_its_digits_where_all_keys_are_equal(rule: str) -> None:
    given = draw(131, HEADS, rule, np.float32)
    output, _ = session(rule, HEADS, few=False, dtype=np.float32).run(["output", "present"], given)
    wanted, _ = recurrence(given)
    assert np.abs(output - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("tokens", [None, 1])
def test_a_selective_scan_is_its_recurrence(tokens: int | None) -> None:
    from kvparity.exporter.passes.selective_scan import SELECTIVE_SCAN, spell_selective_scan

    channels, size, count = 6, 4, tokens or 9
    shapes = {"inputs": [BATCH, tokens or "s", channels], "step": [BATCH, tokens or "s", channels]}
    shapes |= {"rate": [channels, size], "key": [BATCH, tokens or "s", size], "query": [BATCH, tokens or "s", size]}
    shapes["state"] = [BATCH, channels, size]
    kind = ir.TensorType(ir.DataType.DOUBLE)
    inputs = [ir.Value(name=name, type=kind, shape=ir.Shape(shape)) for name, shape in shapes.items()]
    node = ir.node("SelectiveScan", inputs, domain=SELECTIVE_SCAN, num_outputs=2, name="scan")
    for output, name in zip(node.outputs, ("inputs", "state"), strict=True):
        output.name, output.type, output.shape = f"{name}.after", kind, ir.Shape(shapes[name])
    opsets = {"": 18, SELECTIVE_SCAN: 1}
    graph = ir.Graph(inputs, list(node.outputs), nodes=[node], opset_imports=opsets, name="main")
    model = ir.Model(graph, ir_version=8)
    spell_selective_scan(model)
    assert SELECTIVE_SCAN not in model.opset_imports
    assert ("Scan" in {node.op_type for node in model.graph}) is (tokens is None)

    random = np.random.default_rng(0)
    sizes = {name: [count if size == "s" else int(size) for size in shape] for name, shape in shapes.items()}
    given = {name: random.normal(size=shape) for name, shape in sizes.items()}
    given["step"], given["rate"] = np.abs(given["step"]), -np.abs(given["rate"])
    state, wanted = given["state"], []
    for token in range(count):
        x, dt, key, query = (given[name][:, token] for name in ("inputs", "step", "key", "query"))
        state = state * np.exp(dt[..., None] * given["rate"]) + (dt * x)[..., None] * key[:, None]
        wanted.append((state * query[:, None]).sum(-1))
    proto = ir.to_proto(model).SerializeToString()
    output, after = onnxruntime.InferenceSession(proto, providers=["CPUExecutionProvider"]).run(None, given)
    assert np.abs(output - np.stack(wanted, 1)).max() < 1e-13
    assert np.abs(after - state).max() < 1e-13
