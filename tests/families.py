"""Tiny seeded checkpoints of every family, made by code when they are needed and never stored.

A family is a model type and what its config says beyond the small sizes that all share. Weights are drawn so that no
part of the model is without effect: norms away from one, biases and sinks away from zero, matrices scaled by fan-in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

__all__ = ["FAMILIES", "Family", "by_name", "is_fault", "save_checkpoint", "small_config"]

WINDOW = 8
# Given to a config where its class has the field; a family's own settings win.
_SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "sliding_window": WINDOW,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "decoder_sparse_step": 1,
    "attention_dropout": 0.0,
    "rope_scaling": None,
}


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        name: Of the row.
        model_type: As in ``config.json``.
        settings: Config fields beyond the small sizes.
        refused: Words of the refusal, where the family cannot be exported.
        quick: Part of the default test run.
        wrap: The multimodal config around the text config, for text models taken out of multimodal checkpoints.
    """

    name: str
    model_type: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    refused: str = ""
    quick: bool = False
    wrap: Mapping[str, Any] = field(default_factory=dict)


S, F = "sliding_attention", "full_attention"
_GEMMA4 = {"vocab_size_per_layer_input": 96, "hidden_size_per_layer_input": 8, "global_head_dim": 16}
_GEMMA4_PLAIN = {"hidden_size_per_layer_input": 0, "global_head_dim": 16}
_MOE: dict[str, Any] = {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24, "enable_moe_block": True}
_MLA = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "head_dim": 8,
    "v_head_dim": 12,
}
_VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_MIXED = ("vaultgemma", "granite_swa", "granitemoe_swa", "cwm", "exaone_moe", "cohere2_moe", "mellum")
_UNIFORM = ("granitemoeshared", "ernie4_5", "glm", "hunyuan_v1_dense", "minimax_m2", "nemotron", "opt")


def _gemma4(name: str, *layers: str, quick: bool = False, **settings: Any) -> Family:
    sizes = {"layer_types": list(layers), "num_hidden_layers": len(layers)}
    return Family(f"gemma4 {name}", "gemma4_text", {**_GEMMA4, **sizes, **settings}, quick=quick)


FAMILIES: tuple[Family, ...] = (
    _gemma4("tiny-card", S, S, F),
    _gemma4("KV sharing", S, F, S, F, num_kv_shared_layers=2),
    _gemma4(
        "E2B-shaped",
        *(S, F, S, F, S, F),
        num_kv_shared_layers=4,
        use_double_wide_mlp=True,
        global_head_dim=24,
        num_key_value_heads=1,
        final_logit_softcapping=3.0,
        quick=True,
    ),
    _gemma4("E4B-shaped", S, S, F, S, S, F, num_kv_shared_layers=3, global_head_dim=24, final_logit_softcapping=3.0),
    _gemma4(
        "12B-shaped",
        S,
        S,
        F,
        global_head_dim=24,
        hidden_size_per_layer_input=0,
        attention_k_eq_v=True,
        num_global_key_value_heads=1,
        final_logit_softcapping=3.0,
    ),
    _gemma4(
        "26B-A4B-shaped",
        S,
        S,
        F,
        global_head_dim=24,
        hidden_size_per_layer_input=0,
        attention_k_eq_v=True,
        num_global_key_value_heads=1,
        final_logit_softcapping=3.0,
        **_MOE,
    ),
    _gemma4(
        "31B-shaped",
        S,
        S,
        S,
        F,
        global_head_dim=24,
        hidden_size_per_layer_input=0,
        attention_k_eq_v=True,
        num_global_key_value_heads=4,
        num_key_value_heads=2,
        final_logit_softcapping=3.0,
    ),
    Family("gemma", "gemma"),
    Family(
        "gemma2", "gemma2", {"query_pre_attn_scalar": 16, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0}
    ),
    Family("gemma3", "gemma3_text", {"layer_types": [S, S, F], "query_pre_attn_scalar": 16}),
    Family(
        "gemma3n",
        "gemma3n_text",
        {
            "num_hidden_layers": 6,
            "layer_types": [S, S, F, S, S, F],
            "num_kv_shared_layers": 3,
            "intermediate_size": [48] * 6,
            "vocab_size_per_layer_input": 96,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 4,
            "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0, 0.0, 0.0],
            "final_logit_softcapping": 3.0,
        },
    ),
    Family("llama", "llama", quick=True),
    Family(
        "llama yarn",
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    Family(
        "llama3 rope",
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    Family("mistral", "mistral"),
    Family("ministral", "ministral", {"layer_types": [S, F, S]}),
    Family("mixtral", "mixtral"),
    Family("qwen2", "qwen2", {"use_sliding_window": True, "max_window_layers": 1}),
    Family("qwen2_moe", "qwen2_moe"),
    Family("qwen3", "qwen3"),
    Family("qwen3_moe", "qwen3_moe"),
    Family("phi", "phi"),
    Family("phi3", "phi3"),
    Family("cohere", "cohere"),
    Family("cohere2", "cohere2", {"layer_types": [S, S, F]}),
    Family("olmo", "olmo"),
    Family("olmo2", "olmo2"),
    Family("olmo3", "olmo3", {"layer_types": [S, S, F]}),
    Family("olmoe", "olmoe"),
    Family("smollm3", "smollm3", {"no_rope_layers": [1, 1, 0], "no_rope_layer_interval": 3}),
    Family("gpt_oss", "gpt_oss", {"layer_types": [S, F, S]}, quick=True),
    Family("exaone4", "exaone4", {"layer_types": [S, S, F], "sliding_window_pattern": "LLG"}),
    Family(
        "granite",
        "granite",
        {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2, "logits_scaling": 2.0},
    ),
    Family("granitemoe", "granitemoe"),
    Family("starcoder2", "starcoder2"),
    Family("modernbert-decoder", "modernbert-decoder", {"local_attention": 2 * WINDOW, "layer_types": [F, S, S]}),
    Family("arcee", "arcee"),
    Family("apertus", "apertus"),
    Family("afmoe", "afmoe"),
    Family("beam", "beam"),
    Family("glm4", "glm4"),
    Family("stablelm", "stablelm"),
    Family("seed_oss", "seed_oss"),
    Family("phimoe", "phimoe"),
    Family("nanochat", "nanochat"),
    Family("lfm2, full layers only", "lfm2"),
    Family("gpt_neox", "gpt_neox"),
    Family("deepseek_v2", "deepseek_v2", {**_MLA, "topk_method": "greedy", "first_k_dense_replace": 1}),
    Family("deepseek_v3", "deepseek_v3", {**_MLA, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}),
    Family("gemma4_unified, its text part", "gemma4_unified_text", wrap={"model_type": "gemma4_unified"}),
    Family(
        "gemma4 E2B, out of Gemma4ForConditionalGeneration",
        "gemma4_text",
        {
            **_GEMMA4,
            "num_hidden_layers": 4,
            "layer_types": [S, F, S, F],
            "num_kv_shared_layers": 2,
            "global_head_dim": 24,
        },
        wrap={"model_type": "gemma4"},
    ),
    Family(
        "gemma3, out of Gemma3ForConditionalGeneration",
        "gemma3_text",
        {"layer_types": [S, S, F], "query_pre_attn_scalar": 16},
        wrap={"model_type": "gemma3", "mm_tokens_per_image": 4, "vision_config": _VISION},
    ),
    *(Family(name, name, {"layer_types": [S, F, S]}) for name in _MIXED),
    Family(
        "ministral3",
        "ministral3",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "original_max_position_embeddings": 16,
                "llama_4_scaling_beta": 0.1,
            }
        },
    ),
    Family("mimo_v2_flash", "mimo_v2_flash", {"layer_types": [S, F, S], "v_head_dim": 12}),
    *(Family(name, name) for name in _UNIFORM),
    Family("mamba", "mamba", {"state_size": 8, "time_step_rank": 4}),
    Family("jamba", "jamba", {"mamba_d_state": 8, "mamba_dt_rank": 4, "attn_layer_period": 2, "attn_layer_offset": 1}),
    Family(
        "gemma4, bidirectional", "gemma4_text", {**_GEMMA4, "use_bidirectional_attention": "all"}, refused="looks ahead"
    ),
    Family("llama with a stray window", "llama", {"sliding_window": WINDOW}, refused="remove sliding_window"),
    Family("recurrent_gemma", "recurrent_gemma", refused="RecurrentGemmaRecurrentBlock"),
    Family("deepseek_v32", "deepseek_v32", refused="indexed_attention"),
    Family("mpt", "mpt", {"d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 128}),
    Family("bloom", "bloom", {"n_layer": 3, "n_head": 4}),
    Family("bart", "bart", {"d_model": 32, "decoder_layers": 3, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}),
)


# What an export says that broke instead of refusing; the narrow profile may refuse operators, and says what to use.
_FAULTS = ("cannot be traced", "are not in profile")
_ADVICE = "use --profile portable"


def is_fault(reason: str) -> bool:
    """Whether the words of a failed export tell of a fault, and not of a decision to refuse."""
    return _ADVICE not in reason and any(mark in reason for mark in _FAULTS)


def by_name(name: str) -> Family:
    """The family of that name."""
    return next(family for family in FAMILIES if family.name == name)


def small_config(model_type: str, settings: Mapping[str, Any] | None = None) -> Any:
    """A config of a few thousand parameters: the shared small sizes that the class knows, then ``settings``."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[model_type]
    names = {*vars(kind()), *(field.name for field in fields(kind))}
    known = {key: value for key, value in _SMALL.items() if key in names}
    return kind(**{**known, **(settings or {})})


def make_config(family: Family) -> Any:
    """The family's config; a multimodal one around it where the family says so."""
    from transformers import CONFIG_MAPPING

    config = small_config(family.model_type, family.settings)
    if not family.wrap:
        return config
    around = {key: value for key, value in family.wrap.items() if key != "model_type"}
    return CONFIG_MAPPING[family.wrap["model_type"]](text_config=config.to_dict(), **around)


def save_checkpoint(config: Any, folder: Path, seed: int = 0, dtype: str = "float32") -> Path:
    """Write config.json and seeded weights as transformers writes them.

    Args:
        config: Of a causal language model, or of a multimodal model around one.
        folder: To write to.
        seed: Of the weights.
        dtype: Of the weights.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    torch.manual_seed(seed)
    kind = AutoModelForImageTextToText if hasattr(config, "text_config") else AutoModelForCausalLM
    model = kind.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    draw_weights(model, seed)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def draw_weights(model: Any, seed: int) -> None:
    """Replace a model's weights by seeded ones that leave no part of it without effect."""
    import torch

    random = torch.Generator().manual_seed(seed)
    persistent = set(model.state_dict())
    tensors = [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if n in persistent)]
    with torch.no_grad():
        for name, tensor in tensors:
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=random)
            if tensor.ndim >= 2 and "embed" in name:
                tensor.copy_(noise)
            elif tensor.ndim >= 2:
                tensor.copy_(noise / max(tensor.shape[-1], 1) ** 0.5)
            else:
                tensor.add_(0.2 * noise)
    model.tie_weights()
