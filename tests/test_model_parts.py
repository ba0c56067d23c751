"""Parts of a model found by what they are, and numbers that keep their digits: what the wider table of models needs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="the exporter's extra is not installed")
ir = pytest.importorskip("onnx_ir")


def _attention(index: int) -> torch.nn.Module:
    layer = torch.nn.Module()
    layer.attn = torch.nn.Linear(4, 4)
    layer.attn.layer_idx = index
    return layer


@pytest.mark.parametrize("name", ["layers", "h", "blocks", "layer"])
def test_decoder_layers_are_found_whatever_they_are_called(name: str) -> None:
    from kvparity.exporter.contract.modules import decoder_stack, named_parts

    base, other = torch.nn.Module(), torch.nn.ModuleList([torch.nn.Linear(64, 64) for _ in range(9)])
    setattr(base, name, torch.nn.ModuleList([_attention(0), _attention(1)]))
    base.tower = other  # longer and larger, without attention
    model = torch.nn.Module()
    model.transformer = base
    holder, attribute, layers = decoder_stack(model)
    assert (holder is base, attribute, len(layers)) == (True, name, 2)
    paths = [path for path, _ in named_parts(model)]
    assert {"layers", "layers.0.attn", "layers.1.attn"} <= set(paths)


def test_finite_float64_constants_stay_finite_in_float32() -> None:
    from kvparity.exporter.passes.float64_to_float32 import _narrow

    wide = np.array([np.finfo(np.float64).min, 0.1, -np.inf, np.finfo(np.float64).max])
    narrow = _narrow(wide)
    assert narrow.dtype == np.float32
    assert np.isfinite(narrow).tolist() == [True, True, False, True]
    assert narrow[1] == np.float32(0.1)


def test_gather_elements_of_the_float64_evaluation_is_onnx_runtimes() -> None:
    ort = pytest.importorskip("onnxruntime")
    from onnx.parser import parse_model
    from onnx.reference import ReferenceEvaluator

    from kvparity.runners.engines.exact import _gather_elements

    model = parse_model(
        '<ir_version: 10, opset_import: ["": 18]> g (double[1,64] d, int64[1,40] i) => (double[1,40] o) '
        "{ o = GatherElements<axis=1>(d, i) }"
    )
    feeds = {"d": np.arange(64.0)[None], "i": np.arange(40)[None] + 11}
    expected = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)[0]
    assert np.array_equal(ReferenceEvaluator(model, new_ops=[_gather_elements()]).run(None, feeds)[0], expected)


@pytest.mark.parametrize("by_slot", [True, False])
def test_a_model_that_counts_positions_by_slot_has_no_left_padded_case(by_slot: bool) -> None:
    from kvparity.exporter.contract.features import unproven
    from kvparity.exporter.contract.schedule import default_cases
    from kvparity.exporter.contract.spec import LayerSpec, ModelSpec

    layers = (LayerSpec(0, "full", None, 0),)
    spec = ModelSpec("t", "T", 96, 8, 2, layers, (), 128, 0, "float32", True, position_by_slot=by_slot)
    batches = [case for case in default_cases(spec) if case.batch > 1]
    assert batches
    assert any(any(case.pads) for case in batches) is not by_slot
    assert any("left-padded" in words for words in unproven(spec)) is by_slot


def test_complex_numbers_are_pairs_of_real_ones() -> None:
    from kvparity.exporter.model.complex_pairs import ComplexAsPairs

    def rotated(x: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
        turn = torch.polar(torch.ones_like(angle), angle) * 0.5
        numbers = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(numbers * turn[:, :, None, :].to(x.device)).flatten(3)

    x, angle = torch.randn(2, 3, 4, 8).double(), torch.randn(2, 3, 4).double()
    expected = rotated(x, angle)
    with ComplexAsPairs():
        assert torch.allclose(rotated(x, angle), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("layout", ["dynamic", "static", "shared"])
def test_chunks_of_a_mask_are_counted_from_the_first_live_token(layout: str) -> None:
    """As transformers' chunked_overlay, with a past, for rows of different padding."""
    import importlib

    from kvparity.exporter.contract.spec import ExportOptions, LayerSpec, ModelSpec, SlotSpec

    chunk, past, new, pads = 4, 9, 3, torch.tensor([0, 2, 5])
    spec = ModelSpec(
        *("t", "T", 96, 8, 2, (LayerSpec(0, "chunked", chunk, 0),), (SlotSpec(0, 0, "chunked", chunk, 1, 2, 2),)),
        *(128, 0, "float32", True),
    )
    options = ExportOptions(layout=layout, sliding_cache="full", max_len=past + new)  # type: ignore[arg-type]
    live = (torch.arange(past + new)[None] >= pads[:, None]).long()
    rows = torch.zeros(3, 1, past if layout == "dynamic" else past + new, 2)
    inputs = {
        **{"input_ids": torch.zeros(3, new, dtype=torch.int64), "attention_mask": live},
        **{"cache_position": torch.arange(past, past + new), "past_lengths": torch.full((3,), past)},
        **{"past_key_values.0.key": rows, "past_key_values.0.value": rows},
    }
    module = importlib.import_module(f"kvparity.exporter.model.layouts.{layout}")
    mask = module.Cache(spec, options, inputs, torch.float32).masks()[0][:, 0] == 0
    slot, key = torch.arange(past, past + new)[None, :, None], torch.arange(past + new)[None, None]
    start = pads[:, None, None]
    wanted = (key <= slot) & (key >= start) & ((key - start) // chunk == (slot - start) // chunk)
    assert torch.equal(mask, wanted)


def test_a_model_without_the_interface_is_given_the_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvparity.exporter.model import mask_functions as subject

    source = SimpleNamespace(create_causal_mask=lambda **_: "transformers'")
    monkeypatch.setattr(subject, "_sources", lambda model: [source])
    assert not subject.calls_interface(None)
    with subject.mask_functions(None, lambda kind: kind):
        assert source.create_causal_mask(config=None, attention_mask=None) == "full"
    assert source.create_causal_mask() == "transformers'"
