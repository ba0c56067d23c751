"""The tiny configuration has exactly the model card's parameters, and so does the shipped checkpoint."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
from transformers import Gemma4ForCausalLM, Gemma4TextConfig

from kvparity.exporter.contract.errors import ExportError
from kvparity.exporter.tinygemma import config

SHIPPED = Path(__file__).parents[1] / "artifacts" / "tinygemma4text3m" / "hf"


@pytest.fixture(scope="module")
def fresh() -> Gemma4ForCausalLM:
    return Gemma4ForCausalLM(config.tiny_config())


@pytest.fixture(scope="module")
def header() -> dict[str, Any]:
    """The safetensors header, read without safetensors: 8 bytes of length, then JSON."""
    with (SHIPPED / "model.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        entries: dict[str, Any] = json.loads(file.read(length))
    assert entries.pop("__metadata__") == {"format": "pt"}
    return entries


def test_the_breakdown_adds_up_to_the_total() -> None:
    assert sum(config.PARAMETERS_BY_PREFIX.values()) == config.TOTAL_PARAMETERS == 2_597_624


def test_a_fresh_model_has_the_cards_parameters(fresh: Gemma4ForCausalLM) -> None:
    config.check_parameters(fresh)
    assert sum(weight.numel() for weight in fresh.parameters() if weight.requires_grad) == 2_597_624


def test_the_head_is_the_embedding(fresh: Gemma4ForCausalLM) -> None:
    assert fresh.lm_head.weight is fresh.model.embed_tokens.weight
    assert fresh.lm_head.weight.numel() == config.TIED_HEAD_PARAMETERS


def test_layer_types_are_ssfssf(fresh: Gemma4ForCausalLM) -> None:
    assert "".join(kind[0] for kind in fresh.config.layer_types) == "ssfssf"
    assert [layer.self_attn.head_dim for layer in fresh.model.layers] == [32] * 6
    assert [layer.self_attn.sliding_window for layer in fresh.model.layers] == [128, 128, None] * 2


def test_a_model_of_other_sizes_is_refused_with_the_prefix() -> None:
    wider = config.tiny_config()
    wider.intermediate_size = 641
    with pytest.raises(ExportError, match=r"model\.layers\.0'?: \(377664, 377184\)"):
        config.check_parameters(Gemma4ForCausalLM(wider))


def test_a_frozen_weight_is_refused() -> None:
    model = Gemma4ForCausalLM(config.tiny_config())
    model.model.norm.weight.requires_grad_(False)
    with pytest.raises(ExportError, match=r"model\.norm': \(0, 160\)"):
        config.check_parameters(model)


def test_the_shipped_weights_have_the_cards_parameters(header: dict[str, Any]) -> None:
    sizes = {name: math.prod(entry["shape"]) for name, entry in header.items() if not name.endswith(".layer_scalar")}
    assert config.count_by_prefix(sizes) == config.PARAMETERS_BY_PREFIX


def test_the_shipped_weights_are_float32_and_store_the_head_once(header: dict[str, Any]) -> None:
    assert {entry["dtype"] for entry in header.values()} == {"F32"}
    assert [name for name in header if "lm_head" in name] == []
    size = (SHIPPED / "model.safetensors").stat().st_size
    assert size < 4 * config.TOTAL_PARAMETERS + 20_000


def test_the_shipped_config_is_the_tiny_config() -> None:
    shipped = Gemma4TextConfig.from_pretrained(SHIPPED)
    ignored = {"architectures", "dtype", "transformers_version", "_name_or_path", "per_layer_config"}
    expected = {key: value for key, value in config.tiny_config().to_dict().items() if key not in ignored}
    assert {key: value for key, value in shipped.to_dict().items() if key not in ignored} == expected
    assert [shipped.per_layer_config[layer].head_dim for layer in range(6)] == [32] * 6


def test_the_shipped_config_spells_out_the_full_layers_sizes() -> None:
    raw = json.loads((SHIPPED / "config.json").read_text())
    assert (raw["global_head_dim"], raw["num_global_key_value_heads"], raw["dtype"]) == (32, 1, "float32")
    assert "per_layer_config" not in raw


def test_the_shipped_generation_config_has_the_special_ids() -> None:
    raw = json.loads((SHIPPED / "generation_config.json").read_text())
    assert (raw["bos_token_id"], raw["eos_token_id"], raw["pad_token_id"]) == (0, 1, 2)
