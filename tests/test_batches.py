"""A row of a ragged, left-padded batch is the row alone: past the window, in every layout and profile, never NaN."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kvparity.exporter.contract.cases import Case, left_padded, seeded_tokens
from kvparity.exporter.contract.ports import resolve_options
from kvparity.exporter.contract.spec import PREFILL, ExportOptions
from tests.families import by_name, draw_weights, make_config

pytest.importorskip("torch", reason="the exporter's extra is not installed")

CHUNKS = (8, 9, 7, 1, 1, 1)  # 27 tokens, a window of 8
PADS = (0, 3, 12, 25)  # the third row's first call is padding only, the last row's first three but one token
WAYS = {
    "dynamic": ExportOptions(),
    "full caches": ExportOptions(sliding_cache="full"),
    "static": ExportOptions(layout="static", max_len=30, chunk=4, batch=4),
    "static, two by two": ExportOptions(layout="static", max_len=30, chunk=8, batch=2),
    "static, modern": ExportOptions(layout="static", profile="modern", max_len=30, chunk=4, batch=4),
    "ort": ExportOptions(profile="ort"),
    "shared": ExportOptions(profile="ort", layout="shared"),
    "modern": ExportOptions(profile="modern"),
    "bare": ExportOptions(profile="bare"),
}


class Played:
    """The traced module of a family in float64, played through the layout of its options."""

    def __init__(self, name: str, options: ExportOptions) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        from kvparity.exporter.checkpoint.model_spec import model_spec
        from kvparity.exporter.model.attention import ATTENTION, register_attention
        from kvparity.exporter.model.decoder import Decoder
        from kvparity.exporter.model.experts import choose_experts, register_experts
        from kvparity.exporter.model.rope import hook_tables
        from tests.fuzz import Eager, player_of

        register_attention()
        register_experts()
        config = copy.deepcopy(make_config(by_name(name)))
        model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION, dtype=torch.float32).eval()
        draw_weights(model, 0)
        self.spec = model_spec(model.config, model, "float32")
        options = resolve_options(options, self.spec)
        choose_experts(model, PREFILL)
        hook_tables(model)
        self._session = Eager(Decoder(model.double(), self.spec, options, lift=True).eval(), self.spec, options)
        wide = replace(options, dtype="float64")  # type: ignore[arg-type]
        self._player: Any = player_of(self.spec, wide)

    def logits(self, case: Case, *, blind: bool = False) -> Any:
        """(batch, total, vocab); every output must be finite. ``blind`` hides the padding from the graphs."""
        found = []
        for step in case.steps():
            inputs = dict(case.inputs(step))
            if blind:
                inputs["attention_mask"] = np.ones_like(inputs["attention_mask"])
            outputs = self._player.run(self._session, step, inputs)
            assert all(np.isfinite(array).all() for array in outputs.values())
            found.append(outputs["logits"])
        return np.concatenate(found, axis=1)

    def difference(self, *, blind: bool = False) -> float:
        """Largest difference between the rows of a batch and the same rows alone."""
        tokens = seeded_tokens(self.spec, sum(CHUNKS), 5, batch=len(PADS))
        batch = Case("batch", left_padded(self.spec, tokens, PADS), CHUNKS, PADS)
        together, worst = self.logits(batch, blind=blind), 0.0
        for row, pad in enumerate(PADS):
            live = batch.tokens[row : row + 1, pad:]
            alone = self.logits(Case("row", live, (live.shape[1],), (0,)))
            worst = max(worst, float(np.abs(together[row, pad:] - alone[0]).max()))
        return worst


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "family",
    ["gemma4 E2B-shaped", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt_oss", "mistral", "llama"))],
)
def test_a_row_of_a_ragged_batch_is_the_row_alone(family: str, way: str) -> None:
    assert Played(family, WAYS[way]).difference() < 1e-10


@pytest.mark.parametrize("way", ["dynamic", "static", "shared", "bare"])
def test_padding_that_the_mask_does_not_hide_is_seen(way: str) -> None:
    assert Played("mistral", WAYS[way]).difference(blind=True) > 1e-3
