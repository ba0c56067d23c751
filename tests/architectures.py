"""A tiny seeded checkpoint for every architecture that the installed transformers has, made from its config class.

Sizes are set by the names that configs use for them; parts of multimodal configs are made small each by itself.
Nothing here is a list of architectures: what transformers maps to a causal or multimodal language model is an entry.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["causal_types", "multimodal_types", "save_architecture", "tiny_config"]

WINDOW = 8
_TEXT: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "decoder_layers": 3,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "sliding_window": WINDOW,
    "attention_chunk_size": WINDOW,
    "window_size": WINDOW,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    # mixtures of experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_topk": 2,
    "moe_top_k": 2,
    "moe_k": 2,
    "top_k_experts": 2,
    "moe_intermediate_size": 24,
    "expert_ffn_hidden_size": 24,
    "ffn_hidden_size": 48,
    "shared_expert_intermediate_size": 24,
    "shared_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 24,
    "intermediate_size_mlp": 48,
    "zero_expert_num": 2,
    "decoder_sparse_step": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    # latent attention
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    # states
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_ssm": 64,
    "mamba_d_state": 8,
    "mamba_n_groups": 2,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
    "chunk_size": 8,
    "n_mamba_heads": 4,
    "mamba_ngroups": 2,
    "ssm_state_size": 8,
    "state_size": 8,
    "n_groups": 2,
    "num_heads": 4,
    "expand": 2,
    "time_step_rank": 4,
    "mamba_dt_rank": 4,
    "lru_width": 32,
    "block_size": WINDOW,
    # others
    "laurel_rank": 4,
    "vocab_size_per_layer_input": 96,
    "hidden_size_per_layer_input": 8,
    "global_head_dim": 16,
    "word_embed_proj_dim": 32,
    "embedding_size": 32,
    "input_embedding_size": 32,
    "output_embedding_size": 32,
    "rotary_dim": 8,
    "n_positions": 128,
    "n_ctx": 128,
    "max_seq_len": 128,
    "dim_ff": 48,
    "attention_dropout": 0.0,
    "query_pre_attn_scalar": 16,
    "type_vocab_size": 2,
    "languages": ("en", "de"),
    "default_language": "en",
    "logits_scaling": 2.0,
    "original_max_position_embeddings": 32,
    "local_attention": 2 * WINDOW,
    "num_codebooks": 2,
    "audio_channels": 1,
    "is_decoder": True,
    "index_topk": 4,
    "index_n_heads": 2,
    "index_head_dim": 16,
}
_PART: dict[str, Any] = {  # of towers that see or hear
    "hidden_size": 32,
    "embed_dim": 32,
    "d_model": 32,
    "width": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "depth": 1,
    "layers": 1,
    "num_layers": 1,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_heads": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "head_dim": 16,
    "image_size": 28,
    "patch_size": 14,
    "out_hidden_size": 32,
    "output_dim": 32,
    "projection_dim": 32,
    "fullatt_block_indexes": [0],
    "deepstack_visual_indexes": [0],
    "vocab_size": 96,
}
_LATENT = {"num_key_value_heads": 4, "head_dim": 8}  # of models with kv_lora_rank: a latent serves every head
S, F = "sliding_attention", "full_attention"
SETTINGS: dict[str, dict[str, Any]] = {  # what a class needs beyond small sizes
    "blt": {"encoder_hash_byte_group_vocab": 100},
    "cohere_compass_text": {"layer_types": [S, S, F]},
    "bamba": {"attn_layer_indices": [1]},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "d_model": 64,
        "ffn_config": {"moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 64, "ffn_hidden_size": 48},
    },
    "dots1": {"n_shared_experts": 1},
    "gemma3n_text": {
        "num_hidden_layers": 6,
        "layer_types": [S, S, F, S, S, F],
        "num_kv_shared_layers": 3,
        "intermediate_size": [48] * 6,
        "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0, 0.0, 0.0],
    },
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0}},
    "gemma4_unified_assistant": {"text_config": {"hidden_size_per_layer_input": 0}},
    "dots3_note": {"text_config": {"num_key_value_heads": 4}},
    "dots3_note_text": {"num_key_value_heads": 4},
    "glm5_next": {"text_config": {"num_key_value_heads": 4}},
    "granitemoehybrid": {"layer_types": ["linear_attention", F, "linear_attention"]},
    "helium": {"head_dim": 8},
    "inkling2_text": {"unpadded_vocab_size": 90},
    "inkling2_loop_text": {"unpadded_vocab_size": 90},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "llama4_text": {"num_hidden_layers": 4, "floor_scale": 30, "no_rope_layer_interval": 2},
    "kimi_linear": {
        "layer_types": ["linear_attention", F, "linear_attention"],
        "linear_num_heads": 2,
        "linear_head_dim": 8,
    },
    "lfm2_moe": {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]},
    "reformer": {"axial_pos_embds_dim": (16, 16)},
    "roc_bert": {
        "pronunciation_vocab_size": 96,
        "shape_vocab_size": 96,
        "pronunciation_embed_dim": 32,
        "shape_embed_dim": 32,
    },
    "phi4_multimodal": {
        "audio_config": {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48, "num_blocks": 1}
    },
    "plbart": {"decoder_attention_heads": 4},
    "whisper": {"decoder_attention_heads": 4},
    "zamba": {"num_hidden_layers": 6, "layers_block_type": ["mamba", "hybrid", "mamba", "mamba", "hybrid", "mamba"]},
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "layer_types": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
    },
    "zaya": {"num_experts_per_tok": 1},
    "inkling_text": {"unpadded_vocab_size": 90},
}
_DECODER_PARTS = ("text_config", "decoder", "llm_config", "language_config", "qformer_config")


def causal_types() -> tuple[str, ...]:
    """Every model type that transformers maps to a causal language model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def multimodal_types() -> tuple[str, ...]:
    """Every other model type that transformers maps to a model of images, sound and text, or of sound and text."""
    from transformers.models.auto import modeling_auto as auto

    maps = (auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES)
    return tuple(dict.fromkeys(name for names in maps for name in names if name not in causal_types()))


def tiny_config(model_type: str, settings: Mapping[str, Any] | None = None) -> Any:
    """A config of a few thousand parameters."""
    from transformers import CONFIG_MAPPING

    return _tiny(CONFIG_MAPPING[model_type], _TEXT, {**SETTINGS.get(model_type, {}), **(settings or {})})


def _tiny(kind: Any, sizes: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    from transformers import PreTrainedConfig

    plain = kind()
    layers = (
        _layers_of_every_kind(kind, sizes, settings) if sizes is _TEXT and "num_hidden_layers" not in settings else {}
    )
    aliases = dict(getattr(kind, "attribute_map", {}))
    names = {*vars(plain), *inspect.signature(kind.__init__).parameters, *getattr(kind, "__dataclass_fields__", {})}
    known: dict[str, Any] = {}
    for name, value in {**sizes, **(_LATENT if "kv_lora_rank" in names else {}), **layers}.items():
        name = aliases.get(name, name)
        old = vars(plain).get(name)
        if name in names and not (isinstance(old, (list, tuple)) and not isinstance(value, (list, tuple))):
            known[name] = value
    parts = {name: value for name, value in vars(plain).items() if isinstance(value, PreTrainedConfig)}
    for name, part in parts.items():
        own = _TEXT if _decodes(name, part) else _PART
        inner = settings.get(name, {})
        known[name] = _tiny(type(part), own, {**SETTINGS.get(part.model_type, {}), **inner}).to_dict()
    return _fit_sections(kind(**{**known, **{name: value for name, value in settings.items() if name not in parts}}))


def _fit_sections(config: Any) -> Any:
    """Share the rotated pairs out among time, height and width, where a config says how (``mrope_section``)."""
    rope = getattr(config, "rope_parameters", None)
    named = "mrope_section" in getattr(type(config), "ignore_keys_at_rope_validation", ())
    if isinstance(rope, dict) and (named or rope.get("mrope_section")):
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        pairs, count = int(size * rope.get("partial_rotary_factor", 1.0)) // 2, len(rope.get("mrope_section") or "thw")
        rope["mrope_section"] = [pairs // count] * (count - 1) + [pairs - pairs // count * (count - 1)]
    return config


def _layers_of_every_kind(kind: Any, sizes: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, int]:
    """The fewest layers, of up to six, that have every kind of layer which the class' own default has."""
    wanted = set(getattr(kind(), "layer_types", None) or ())
    for count in (3, 4, 5, 6) if len(wanted) > 1 else ():
        try:
            made = _tiny(kind, sizes, {"num_hidden_layers": count, **settings})
        except Exception:  # the class checks the number of layers against something else
            continue
        if wanted <= set(getattr(made, "layer_types", None) or ()):
            return {"num_hidden_layers": count}
    return {}


def _decodes(name: str, part: Any) -> bool:
    return name in _DECODER_PARTS or any(word in name for word in ("text", "decoder", "thinker", "language"))


def save_architecture(model_type: str, folder: Path, *, multimodal: bool = False, seed: int = 0) -> Path:
    """Write config.json and seeded weights of an entry's own class, as transformers writes them."""
    import torch

    from tests.families import draw_weights

    torch.manual_seed(seed)
    config = tiny_config(model_type)
    model = model_class(config, multimodal).from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    draw_weights(model, seed)
    model.save_pretrained(folder)
    return folder


def model_class(config: Any, multimodal: bool) -> Any:
    """The auto class that maps a config to a model with a language model's head."""
    import transformers as tr

    kinds = (tr.AutoModelForMultimodalLM, tr.AutoModelForImageTextToText) if multimodal else (tr.AutoModelForCausalLM,)
    return next((kind for kind in kinds if type(config) in kind._model_mapping), kinds[0])
