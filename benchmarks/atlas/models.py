"""Small seeded checkpoints of different families, with a tokenizer and, for older readers, older names of settings."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["MODELS", "Model", "write_model"]

S, F = "sliding_attention", "full_attention"
_SIZES = {  # int4 blocks of 32, and no layer as wide as the vocabulary: GenAI's builder takes it for the head
    "hidden_size": 64,
    "intermediate_size": 128,
    "vocab_size": 160,
    "max_position_embeddings": 256,
}


@dataclass(frozen=True)
class Model:
    """One model of the atlas.

    Attributes:
        name: Of its column.
        model_type: As in ``config.json``.
        settings: Beyond the small sizes that all share (``tests.families``).
    """

    name: str
    model_type: str
    settings: Mapping[str, Any] = field(default_factory=dict)


_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_GRANITE = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.2,
    "logits_scaling": 2.0,
}
MODELS = (
    Model("llama", "llama"),
    Model("llama3 rope", "llama", {"rope_parameters": _LLAMA3}),
    Model("mistral", "mistral"),
    Model("qwen2", "qwen2"),
    Model("qwen3", "qwen3"),
    Model("gemma2", "gemma2", {"hidden_size": 96, "query_pre_attn_scalar": 24, "final_logit_softcapping": 3.0}),
    Model("gemma3", "gemma3_text", {"hidden_size": 96, "layer_types": [S, S, F], "query_pre_attn_scalar": 24}),
    Model("olmo3", "olmo3", {"layer_types": [S, S, F]}),
    Model("phi3", "phi3"),
    Model("granite", "granite", _GRANITE),
    Model("smollm3", "smollm3", {"no_rope_layers": [1, 1, 0], "no_rope_layer_interval": 3}),
    Model("gpt_oss", "gpt_oss", {"layer_types": [S, F, S]}),
    Model("gpt_neox", "gpt_neox"),
    Model("starcoder2", "starcoder2"),
)


def write_model(model: Model, folder: Path) -> Path:
    """Write config, seeded weights and a tokenizer of made-up words; nothing where that was done.

    Args:
        model: Which.
        folder: To write to.
    """
    from tests.families import save_checkpoint, small_config

    if (folder / "tokenizer.json").exists():
        return folder
    config = small_config(model.model_type, {**_known(model.model_type), **model.settings})
    config.architectures = None
    save_checkpoint(config, folder)
    _write_tokenizer(folder)
    return folder


def _known(model_type: str) -> dict[str, Any]:
    """The sizes that a config of this type has."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[model_type]()
    return {key: value for key, value in _SIZES.items() if hasattr(kind, key)}


def _write_tokenizer(folder: Path) -> None:
    words = ["<pad>", "<eos>", "<bos>", *(f"w{number}" for number in range(3, 160))]
    added = [
        {"id": index, "content": word, "special": True, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False}
        for index, word in enumerate(words[:3])
    ]
    model = {"type": "WordLevel", "vocab": {word: index for index, word in enumerate(words)}, "unk_token": "w3"}
    parts = {"version": "1.0", "added_tokens": added, "pre_tokenizer": {"type": "Whitespace"}, "model": model}
    rest = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    (folder / "tokenizer.json").write_text(json.dumps({**rest, **parts}), encoding="utf-8")
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "w3"}
    names |= {f"{key}_token": f"<{key}>" for key in ("pad", "eos", "bos")}
    (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")


def older_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as transformers 4 wrote it: rotary bases and scaling at the top, not in ``rope_parameters``."""
    found = dict(config)
    rope = found.pop("rope_parameters", None) or {}
    if F in rope:
        found["rope_theta"] = rope[F]["rope_theta"]
        found["rope_local_base_freq"] = rope[S]["rope_theta"]
        rope = rope[F]
    found.setdefault("rope_theta", rope.get("rope_theta", 10000.0))
    scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
    found["rope_scaling"] = None if scaling.get("rope_type", "default") == "default" else scaling
    if "partial_rotary_factor" in rope:
        found["partial_rotary_factor"] = found["rotary_pct"] = rope["partial_rotary_factor"]
    found["torch_dtype"] = found.pop("dtype", "float32")
    return {key: value for key, value in found.items() if not (isinstance(value, float) and math.isinf(value))}
