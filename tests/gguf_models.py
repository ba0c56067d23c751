"""Tiny seeded models as GGUF files, written by gguf's own writer with the keys of llama.cpp's converter."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.families import draw_weights, small_config


@dataclass(frozen=True)
class GgufModel:
    """One row of the table: a model of transformers, and the keys and tensors that a converter writes for it.

    Attributes:
        architecture: llama.cpp's name.
        model_type: transformers' name.
        settings: Of the config, beyond the small sizes.
        keys: Beyond those that every decoder has; without the architecture's prefix.
        tensors: Beyond the weights.
        heeds: Keys and tensors whose absence must change the logits.
    """

    architecture: str
    model_type: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Any] = field(default_factory=dict)
    heeds: tuple[str, ...] = ()


LINEAR = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32}
YARN_HF = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LINEAR_HF = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
MOE = {
    "expert_count": 4,
    "expert_used_count": 2,
    "expert_feed_forward_length": 24,
}
SHORT, LONG = [1.0, 1.25, 1.5, 2.0], [1.5, 2.5, 4.0, 8.0]
GEMMA4 = {
    "num_hidden_layers": 6,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
    "global_head_dim": 24,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 96,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
    },
}
GEMMA4_KEYS = {
    "attention.sliding_window": 8,
    "attention.sliding_window_pattern": [True, False] * 3,
    "attention.key_length": 24,
    "attention.value_length": 24,
    "attention.key_length_swa": 16,
    "attention.value_length_swa": 16,
    "rope.dimension_count": 24,
    "rope.dimension_count_swa": 16,
    "rope.freq_base": 1e6,
    "rope.freq_base_swa": 5000.0,
}


def llama3_factors(theta: float, head_dim: int) -> np.ndarray[Any, Any]:
    """rope_freqs.weight as convert_hf_to_gguf.py makes it."""
    import math

    frequencies = 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    made = []
    for frequency in frequencies:
        length = 2 * math.pi / frequency
        if length < 8192 / 4:
            made.append(1.0)
        elif length > 8192:
            made.append(32.0)
        else:
            smooth = (8192 / length - 1) / (4 - 1)
            made.append(1 / ((1 - smooth) / 32 + smooth))
    return np.array(made, np.float32)


MODELS: dict[str, GgufModel] = {
    "llama": GgufModel("llama", "llama"),
    "llama, untied, biases": GgufModel("llama", "llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, tied": GgufModel("llama", "llama", {"tie_word_embeddings": True}),
    "llama, linear": GgufModel(
        "llama", "llama", {"rope_parameters": LINEAR_HF}, LINEAR, heeds=("rope.scaling.factor",)
    ),
    "llama, linear of old files": GgufModel(
        "llama", "llama", {"rope_parameters": LINEAR_HF}, {"rope.scale_linear": 4.0}, heeds=("rope.scale_linear",)
    ),
    "llama, yarn": GgufModel("llama", "llama", {"rope_parameters": YARN_HF}, YARN, heeds=("rope.scaling.type",)),
    "llama, yarn with betas": GgufModel(
        "llama",
        "llama",
        {
            "rope_parameters": {**YARN_HF, "beta_fast": 1.0, "beta_slow": 0.1, "attention_factor": 1.7079441541679836},
            "head_dim": 32,
        },
        {
            **YARN,
            "rope.scaling.yarn_beta_fast": 1.0,
            "rope.scaling.yarn_beta_slow": 0.1,
            "rope.scaling.attn_factor": 1.5,
        },
        heeds=("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "rope.scaling.attn_factor"),
    ),
    "llama 3.2": GgufModel(
        "llama",
        "llama",
        {"rope_parameters": LLAMA3, "head_dim": 32},
        {"rope.freq_base": 500000.0},
        {"rope_freqs.weight": llama3_factors(500000.0, 32)},
        heeds=("rope_freqs.weight",),
    ),
    "qwen2": GgufModel("qwen2", "qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen2, yarn": GgufModel("qwen2", "qwen2", {"rope_parameters": YARN_HF}, YARN, heeds=("rope.scaling.factor",)),
    "qwen3": GgufModel("qwen3", "qwen3"),
    "qwen3, yarn": GgufModel("qwen3", "qwen3", {"rope_parameters": YARN_HF}, YARN, heeds=("rope.scaling.factor",)),
    "qwen2moe": GgufModel("qwen2moe", "qwen2_moe", {}, {**MOE, "expert_shared_feed_forward_length": 24}),
    "qwen3moe": GgufModel("qwen3moe", "qwen3_moe", {"norm_topk_prob": True}, MOE),
    "phi3": GgufModel("phi3", "phi3", {"sliding_window": None}, {"attention.sliding_window": 0}),
    "phi3, window": GgufModel(
        "phi3", "phi3", {"sliding_window": 8}, {"attention.sliding_window": 8}, heeds=("attention.sliding_window",)
    ),
    "phi3, long": GgufModel(
        "phi3",
        "phi3",
        {
            "sliding_window": None,
            "original_max_position_embeddings": 16,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": SHORT,
                "long_factor": LONG,
            },
        },
        {"rope.scaling.original_context_length": 16, "rope.scaling.attn_factor": 1.3228756555322954},
        {
            "rope_factors_long.weight": np.array(LONG, np.float32),
            "rope_factors_short.weight": np.array(SHORT, np.float32),
        },
    ),
    "gemma2": GgufModel(
        "gemma2",
        "gemma2",
        {"query_pre_attn_scalar": 16, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
        {"attention.sliding_window": 8, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
        heeds=("attn_logit_softcapping", "final_logit_softcapping", "attention.sliding_window"),
    ),
    "gemma3, 4B and more": GgufModel(
        "gemma3",
        "gemma3_text",
        {
            "query_pre_attn_scalar": 16,
            "num_hidden_layers": 6,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
            },
        },
        {
            "attention.sliding_window": 8,
            "rope.freq_base": 1e6,
            "rope.freq_base_swa": 5000.0,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
        },
        heeds=("rope.scaling.factor", "rope.freq_base_swa", "attention.sliding_window"),
    ),
    "gemma4, E2B": GgufModel(
        "gemma4",
        "gemma4_text",
        {
            **GEMMA4,
            "num_kv_shared_layers": 4,
            "use_double_wide_mlp": True,
            "num_key_value_heads": 1,
            "final_logit_softcapping": 3.0,
        },
        {
            **GEMMA4_KEYS,
            "attention.shared_kv_layers": 4,
            "feed_forward_length": [48, 48, 96, 96, 96, 96],
            "attention.head_count_kv": 1,
            "embedding_length_per_layer_input": 8,
            "final_logit_softcapping": 3.0,
        },
        {"rope_freqs.weight": np.array([1.0] * 3 + [1e30] * 9, np.float32)},
        heeds=("rope_freqs.weight", "final_logit_softcapping", "rope.freq_base_swa"),
    ),
    "gemma4, 12B": GgufModel(
        "gemma4",
        "gemma4_text",
        {
            **GEMMA4,
            "hidden_size_per_layer_input": 0,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
        },
        {
            **GEMMA4_KEYS,
            "attention.shared_kv_layers": 0,
            "embedding_length_per_layer_input": 0,
            "attention.head_count_kv": [2, 1, 2, 1, 2, 1],
        },
        {"rope_freqs.weight": np.array([1.0] * 3 + [1e30] * 9, np.float32)},
    ),
    "starcoder2": GgufModel(
        "starcoder2",
        "starcoder2",
        {"sliding_window": None, "rope_parameters": {"rope_type": "default", "rope_theta": 99999.0}},
        heeds=("rope.freq_base",),
    ),
    "nemotron": GgufModel("nemotron", "nemotron", {"norm_eps": 1e-3}, heeds=("rope.dimension_count",)),
    "stablelm": GgufModel("stablelm", "stablelm", {"use_qkv_bias": True, "layer_norm_eps": 1e-3}),
    "lfm2": GgufModel(
        "lfm2",
        "lfm2",
        {"block_auto_adjust_ff_dim": False, "layer_types": ["conv", "full_attention", "conv"]},
        {"shortconv.l_cache": 3, "attention.head_count_kv": [0, 2, 0]},
    ),
    "gpt2": GgufModel("gpt2", "gpt2", {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64, "n_inner": 48}),
}


def make_model(row: GgufModel, seed: int = 0) -> Any:
    """The seeded model."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = small_config(row.model_type, row.settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    draw_weights(model, seed)
    model.tie_weights()
    return model


def write_gguf(
    row: GgufModel,
    model: Any,
    path: Path,
    *,
    without: str = "",
    extra: Mapping[str, Any] | None = None,
    alignment: int = 0,
    types: Callable[[str], str] = lambda name: "F32",
    parts: int = 0,
) -> Path:
    """Write a model as llama.cpp's converter does.

    Args:
        row: Of the table.
        model: What :func:`make_model` gives.
        path: File to write.
        without: A key or tensor to leave out.
        extra: Keys to add, without prefix.
        alignment: ``general.alignment``; 0 leaves it out.
        types: The type of a matrix by its name.
        parts: Split into about so many files, the first of them without tensors; 0 does not.
    """
    import gguf

    arrays = {**_tensors(row, model), **row.tensors}
    split: dict[str, Any] = (
        {"split_max_tensors": -(-len(arrays) // (parts - 1)), "small_first_shard": True} if parts else {}
    )
    writer = gguf.GGUFWriter(path, row.architecture, **split)
    writer.add_name("tiny")
    if alignment:
        writer.add_custom_alignment(alignment)
    keys = {**_keys(model), **row.keys, **(extra or {})}
    for name, value in keys.items():
        if name != without:
            _add(writer, f"{row.architecture}.{name}", value)
    writer.add_token_list([f"t{index}" for index in range(model.config.vocab_size)])
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    for name, array in arrays.items():
        if name != without:
            kind = gguf.GGMLQuantizationType[types(name) if array.ndim == 2 else "F32"]
            writer.add_tensor(name, blocks_of(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def blocks_of(array: np.ndarray[Any, Any], kind: Any) -> np.ndarray[Any, Any]:
    """Rows of a type's blocks; random ones of about the same size where gguf's library has no quantiser of the type."""
    import gguf

    from kvparity.exporter.quantize.gguf import TYPES

    try:
        return np.ascontiguousarray(gguf.quantize(np.ascontiguousarray(array), kind))
    except NotImplementedError:
        columns, size = gguf.GGML_QUANT_SIZES[kind]
        random, found = np.random.default_rng(0), TYPES[kind.name]
        blocks = random.integers(0, 256, (len(array), array.shape[1] // columns, size)).astype(np.uint8)
        places = [place for place in (found.factor, found.minimum) if place is not None]

        def rows(factor: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            for place in places:
                blocks[..., place : place + 2] = factor.astype(np.float16)[..., None].view(np.uint8)
            return blocks.reshape(len(array), -1)

        factors = random.uniform(0.5, 1, blocks.shape[:2])
        return rows(factors * np.std(array) / np.std(gguf.dequantize(rows(factors), kind)))


def _add(writer: Any, name: str, value: Any) -> None:
    if isinstance(value, str):
        writer.add_string(name, value)
    elif isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, (list, tuple)):
        writer.add_array(name, list(value))
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    else:
        writer.add_float32(name, value)


def _keys(model: Any) -> dict[str, Any]:
    """What a converter writes for every decoder."""
    config = copy.deepcopy(model.config)
    config.allow_global_per_layer_attribute_access = True  # Gemma 4's rows say what differs between layers
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    keys = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": getattr(config, "intermediate_size", None) or config.n_inner,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", config.num_attention_heads),
        "attention.causal": True,
    }
    if rope:
        keys["rope.dimension_count"] = int(head_dim * rope.get("partial_rotary_factor", 1.0))
        keys["rope.freq_base"] = float(rope["rope_theta"])
        keys |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
    for name in ("layer_norm_eps", "norm_eps", "norm_epsilon", "layer_norm_epsilon"):
        if hasattr(config, name):
            kind = "layer_norm_rms" if config.model_type == "lfm2" else "layer_norm"
            keys[f"attention.{kind}_epsilon"] = float(getattr(config, name))
    if hasattr(config, "rms_norm_eps"):
        keys["attention.layer_norm_rms_epsilon"] = float(config.rms_norm_eps)
    return keys


def _tensors(row: GgufModel, model: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Weights under llama.cpp's names, in its layout: the reverse of transformers' tensor processors."""
    import gguf

    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == row.architecture)
    names = gguf.get_tensor_name_map(architecture, model.config.num_hidden_layers)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight")
    found: dict[str, np.ndarray[Any, Any]] = {}
    for name, array in state.items():
        base, _, suffix = name.rpartition(".")
        if suffix == "layer_scalar":
            found[f"blk.{name.split('.')[2]}.layer_output_scale.weight"] = array
            continue
        if base.endswith("mlp.experts"):
            found |= _experts(name, array)
            continue
        plain = names.get_name(base) or names.get_name(base.removeprefix("transformer."))
        assert plain is not None, name
        found[f"{plain}.{suffix}"] = _laid_out(row.architecture, f"{plain}.{suffix}", array, model.config)
    return found


def _experts(name: str, array: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    block = f"blk.{name.split('.')[2]}"
    if name.endswith("down_proj"):
        return {f"{block}.ffn_down_exps.weight": array}
    gate, up = np.split(array, 2, axis=1)
    return {f"{block}.ffn_gate_exps.weight": gate, f"{block}.ffn_up_exps.weight": up}


def _laid_out(architecture: str, name: str, array: np.ndarray[Any, Any], config: Any) -> np.ndarray[Any, Any]:
    if architecture == "llama" and (".attn_q." in name or ".attn_k." in name):
        heads = config.num_attention_heads if ".attn_q." in name else config.num_key_value_heads
        turned = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:]).swapaxes(1, 2)
        return turned.reshape(array.shape)
    if architecture in ("gemma2", "gemma3", "nemotron") and name.endswith("norm.weight"):
        return array + 1
    if (
        architecture == "gpt2"
        and name.endswith(".weight")
        and any(part in name for part in ("attn_qkv", "ffn_down", "ffn_up", "attn_output"))
    ):
        return array.T
    if "shortconv.conv" in name:
        return array[:, 0]
    if architecture == "qwen2moe" and "ffn_gate_inp_shexp" in name:
        return array[0]
    return array
