"""Banded attention is attention: for any prompt, window and past, in torch and in the ONNX that is shipped."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvparity.exporter.model.banded_attention import attend_banded, band_mask
from kvparity.exporter.model.standard_operators import attend
from kvparity.exporter.trace.onnx_translations import translation_table
from tests.fuzz import check

HEADS, KV_HEADS, SIZE = 4, 2, 3


def case(batch: int, tokens: int, before: int, window: int, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Tensors of one call; half of the rows before it, and a few of its own, are padding."""
    torch.manual_seed(tokens + 100 * before + window)
    rows = before + tokens
    place = torch.arange(rows)
    query = place[before:, None]
    seen = (place <= query) & (query - place < window) & ((place >= before // 2) | (place == query))
    mask = torch.where(seen, 0.0, -1e9).to(dtype).expand(batch, 1, tokens, rows)
    shapes = {"query": (HEADS, tokens), "key": (KV_HEADS, rows), "value": (KV_HEADS, rows)}
    drawn = {name: torch.randn(batch, *shape, SIZE, dtype=dtype) for name, shape in shapes.items()}
    return {**drawn, "mask": mask}


def plain(given: dict[str, Any], **arguments: Any) -> torch.Tensor:
    return attend(given["query"], given["key"], given["value"], given["mask"], scaling=0.7, **arguments)


def banded(given: dict[str, Any], window: int, **arguments: Any) -> torch.Tensor:
    band = band_mask(given["mask"], window)
    return attend_banded(given["query"], given["key"], given["value"], band, window, scaling=0.7, **arguments)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 2),
    tokens=st.integers(1, 23),
    window=st.integers(1, 9),
    full=st.booleans(),
    softcap=st.sampled_from([None, 2.0]),
)
def test_blocks_give_what_the_whole_mask_gives(
    batch: int, tokens: int, window: int, full: bool, softcap: float | None
) -> None:
    drawn = case(batch, tokens, window if full else 0, window)
    assert (banded(drawn, window, softcap=softcap) - plain(drawn, softcap=softcap)).abs().max() < 1e-13


@pytest.mark.parametrize("other", [7, 9])
def test_blocks_of_another_window_are_seen_to_be_wrong(other: int) -> None:
    """Twin: the mask still hides what a window of 8 hides, so it is the blocks that must not lose a row."""
    drawn = case(1, 30, 0, 16)
    assert (banded(drawn, 16) - plain(drawn)).abs().max() < 1e-13
    assert (banded(drawn, other) - plain(drawn)).abs().max() > 1e-3


class Layer(torch.nn.Module):
    """One sliding layer's attention, as a model would call it."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window

    def forward(self, query: Any, key: Any, value: Any, mask: Any) -> torch.Tensor:
        return banded({"query": query, "key": key, "value": value, "mask": mask}, self.window)


@pytest.fixture(scope="module")
def session() -> onnxruntime.InferenceSession:
    """The shipped spelling for a window of 5, any batch, any number of tokens and rows."""
    drawn = case(2, 13, 5, 5, torch.float32)
    axes = {
        "query": {0: "b", 2: "s"},
        "key": {0: "b", 2: "r"},
        "value": {0: "b", 2: "r"},
        "mask": {0: "b", 2: "s", 3: "r"},
    }
    program = torch.onnx.export(
        Layer(5).eval(),
        kwargs=drawn,
        dynamo=True,
        opset_version=23,
        custom_translation_table=translation_table("ort"),
        dynamic_shapes={name: {axis: torch.export.Dim.DYNAMIC for axis in part} for name, part in axes.items()},
        optimize=False,
        verbose=False,
    )
    assert program is not None
    data = ir.to_proto(program.model).SerializeToString()
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("before", [0, 5])
@pytest.mark.parametrize("tokens", [1, 2, 4, 5, 6, 10, 11, 23])
def test_the_shipped_graph_is_banded_attention(session: onnxruntime.InferenceSession, tokens: int, before: int) -> None:
    drawn = case(2, tokens, before, 5, torch.float32)
    feeds = {name: np.ascontiguousarray(value.numpy()) for name, value in drawn.items()}
    (actual,) = session.run(None, feeds)
    expected = plain(drawn).numpy()
    assert actual.shape == expected.shape
    assert np.abs(actual.astype(np.float64) - expected.astype(np.float64)).max() <= 1e-6


@pytest.mark.parametrize("sliding_cache", ["full", "bounded"])
def test_a_prompt_after_a_past_is_right_whether_sliding_layers_keep_a_ring_or_every_row(sliding_cache: str) -> None:
    """Found by drawing: a buffer of every row does not end with the call's own rows, so it is not cut into blocks."""
    config = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    config |= {"hidden_size": 16, "vocab_size": 12, "sliding_window": 4}
    options = {"layout": "shared", "profile": "ort", "sliding_cache": sliding_cache, "logits": "all"}
    drawn = {"model_type": "gemma2", "config": config, "options": options}
    case = {"chunks": [3, 9, 1, 5], "pads": [2, 0], "first": "prefill"}
    assert check({**drawn, "case": case}, graphs=True) == "match"
