"""Every layout and profile, exported from a two-layer checkpoint, gives what PyTorch gives on every case that fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.spec import ExportOptions
from kvparity.exporter.contract.vectors import expected_outputs
from kvparity.exporter.export import export
from kvparity.runners.base import load_engine
from kvparity.runners.decode.play import play
from kvparity.runners.reference.record import record_cases

torch = pytest.importorskip("torch", reason="the exporter's extra is not installed")

WINDOW, LONGEST = 4, 20
WAYS: dict[str, dict[str, Any]] = {
    "static": {"layout": "static", "max_len": 21, "chunk": 3},
    "bare": {"profile": "bare"},
    "modern": {"profile": "modern"},
    "shared": {"profile": "ort", "layout": "shared"},
    "modern-static": {"profile": "modern", "layout": "static", "max_len": 21, "chunk": 3},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One sliding and one full layer, two key heads for four queries."""
    from transformers import AutoModelForCausalLM, Gemma3TextConfig

    torch.manual_seed(5)
    config = Gemma3TextConfig(
        vocab_size=48,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=32,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"],
        query_pre_attn_scalar=7,  # a scale that float32 cannot hold
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=1,
    )
    folder = tmp_path_factory.mktemp("checkpoint")
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bundles(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Bundles by name, made when first asked for; traced here, because a process of its own loads torch anew."""
    from kvparity.exporter.checkpoint.source import resolve

    made: dict[str, Bundle] = {}

    def make(name: str) -> Bundle:
        if name not in made:
            target = tmp_path_factory.mktemp(name) / "bundle"
            source, options = resolve(str(checkpoint)), ExportOptions(**WAYS[name])
            made[name] = export(source, target, options, record=record_cases, limit=LONGEST, in_process=True)
        return made[name]

    return make


def worst(bundle: Bundle, engine: str, *, poison: bool = False) -> float:
    """Largest difference from PyTorch over live slots of every case; from float64 for the exact runner."""
    session, found = load_engine(engine).open_session(bundle, {}), 0.0
    for entry in bundle.manifest.cases:
        vectors = bundle.vectors(entry.name)
        arrays, live = vectors.float64() if engine == "exact" else vectors.arrays, vectors.case.mask == 1
        for result in play(bundle, session, vectors.case, poison=poison):
            expected = expected_outputs(arrays, result.step, bundle.model.slots, bundle.options)
            for name, values in expected.items():
                actual, axis = result.outputs[name], 1 if name == "logits" else 2
                assert actual.shape == values.shape, (entry.name, name)
                seen = live[result.step.which, result.step.stop - values.shape[axis] : result.step.stop]
                delta = np.moveaxis(np.abs(np.subtract(actual, values, dtype=np.float64)), axis, 1)[seen]
                found = max(found, float(np.nan_to_num(delta, nan=np.inf).max(initial=0.0)))
    return found


@pytest.mark.parametrize("name", [pytest.param(way, marks=pytest.mark.slow) if "-" in way else way for way in WAYS])
def test_the_graphs_are_exact_and_match_on_every_case(bundles: Any, name: str) -> None:
    bundle = bundles(name)
    poison = bundle.options.layout in ("static", "shared")
    assert {entry.batch for entry in bundle.manifest.cases} > {1}
    assert worst(bundle, "exact", poison=poison) < 1e-10
    assert worst(bundle, "ort", poison=poison) < 1e-5


def test_the_bare_graphs_have_plain_operators_only_and_say_how_to_make_their_inputs(bundles: Any) -> None:
    import onnx_ir as ir

    bundle = bundles("bare")
    plain = {"Add", "Concat", "Div", "Gather", "MatMul", "Max", "Mul", "Neg", "ReduceMean", "Reshape", "Shape"}
    plain |= {"Sigmoid", "Slice", "Softmax", "Sqrt", "Sub", "Transpose", "Unsqueeze"}
    for kind, graph in bundle.manifest.graphs.items():
        assert {node.op_type for node in ir.load(bundle.graph_path(kind)).graph} <= plain
        assert graph.opset == {"": 17}
    names = [item.name for item in bundle.manifest.host_inputs]
    assert names[:2] == [f"mask.sliding_{WINDOW}", "mask.full"]
    assert {name.split(".")[1] for name in names[2:]} == {"full_attention", "sliding_attention"}


def test_the_modern_graphs_use_standard_operators_and_name_the_runtime(bundles: Any) -> None:
    import onnx_ir as ir

    bundle = bundles("modern")
    graph = ir.load(bundle.graph_path("decode")).graph
    ops = [node.op_type for node in graph]
    assert ops.count("Attention") == 2
    assert ops.count("RotaryEmbedding") == 4
    assert ops.count("RMSNormalization") == 13  # four and two of q and k per layer, one at the end
    assert ops.count("Gelu") == 2
    assert not {"Softmax", "ReduceMean", "Sqrt"} & set(ops)
    assert all(node.attributes.get_int("is_causal", 0) == 0 for node in graph if node.op_type == "Attention")
    assert bundle.manifest.graphs["decode"].needs == "opset 23: ONNX Runtime 1.23 or later"


def test_the_shared_buffers_are_written_in_place_and_one_wrong_length_is_a_mismatch(
    bundles: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twin of the shared match: the host says that the cache is one row longer than it is."""
    from kvparity.runners.decode.layouts import shared

    bundle = bundles("shared")
    for graph in bundle.manifest.graphs.values():
        assert graph.opset[""] == 24
        assert graph.needs.endswith("1.25 or later (has no TensorScatter before)")
    session = load_engine("ort").open_session(bundle, {})
    player = shared.Player(bundle.model, bundle.options)
    case = bundle.vectors("decode-across").case
    first, second = list(case.steps())[:2]
    player.run(session, first, case.inputs(first))
    before = {name: (buffer, buffer.copy()) for name, buffer in player._buffers.items()}
    player.run(session, second, case.inputs(second))
    for name, (buffer, old) in before.items():
        assert player._buffers[name] is buffer
        changed = np.flatnonzero((buffer != old).any((0, 1, 3)))
        assert changed.tolist() == [second.start % buffer.shape[2]]
    full = np.full
    monkeypatch.setattr(np, "full", lambda shape, value, dtype: full(shape, value + 1, dtype))
    assert worst(bundle, "exact") > 1e-4


def test_the_shared_layout_is_for_onnx_runtime(checkpoint: Path) -> None:
    from kvparity.exporter.contract.errors import ExportError
    from kvparity.exporter.contract.ports import resolve_options

    model: Any = None
    with pytest.raises(ExportError, match="--layout shared is for ONNX Runtime: it needs --profile ort"):
        resolve_options(ExportOptions(layout="shared"), model)
    with pytest.raises(ExportError, match="--profile ort needs --opset 24 or later in the shared layout"):
        resolve_options(ExportOptions(layout="shared", profile="ort", opset=23), model)


def test_a_mask_that_the_host_gets_wrong_is_a_mismatch(bundles: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twin of the bare match: the window that the host uses is one too wide."""
    import kvparity.exporter.contract.host_inputs as host

    visible = host.visible
    monkeypatch.setattr(
        host, "visible", lambda mask, queries, rows, window: visible(mask, queries, rows, (window or 99) + 1)
    )
    assert worst(bundles("bare"), "exact") > 1e-4
