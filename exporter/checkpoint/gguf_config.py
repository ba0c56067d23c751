"""The config of a GGUF file: every key of its architecture is heeded, or known to change no logits, or refused by name.

transformers' own reader skips keys that it does not map (``rope.scaling``, softcaps, windows …) and fills the rest with
the defaults of some checkpoint. Here a key that nobody asked for is an error. What keys mean is llama.cpp's
(``llama-model.cpp``, ``convert_hf_to_gguf.py``), what a config can say is transformers'.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np

from kvparity.exporter.checkpoint.gguf_file import GgufFile
from kvparity.exporter.contract.errors import ExportError

__all__ = ["gguf_config"]

# Keys that change no logits of a decoder while they have this value; None for any value.
_NEUTRAL: Mapping[str, Any] = {
    "attention.causal": True,
    "attention.clamp_kqv": 0,
    "attention.max_alibi_bias": 0,
    "embedding_length_out": None,
    "expert_count": 0,
    "expert_used_count": 0,
    "pooling_type": 0,
    "rope.scaling.finetuned": None,  # how the model was trained
    "tensor_data_layout": None,
    "vocab_size": None,  # the embedding has so many rows
}
_UNREAD_TENSORS = re.compile(r"(blk\.\d+\.)?(rope_freqs|attn_rot_embd)(\.weight)?")
_YARN_BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}
Settings = dict[str, Any]


def gguf_config(file: GgufFile) -> Any:
    """The transformers config that computes what a GGUF file holds.

    Raises:
        ExportError: Names the keys or tensors that it cannot heed, or those that the file lacks.
    """
    from transformers import AutoConfig

    build = _BUILDERS.get(file.architecture)
    if build is None:
        raise ExportError(
            f"{file.name}: GGUF files of the architecture {file.architecture!r} are not read, only those of "
            f"{', '.join(sorted(_BUILDERS))}; export the safetensors checkpoint that it was made from"
        )
    keys = _Keys(file)
    settings = build(keys) | _token_ids(file)
    keys.refuse_rest()
    kind = settings.pop("model_type")
    try:
        return AutoConfig.for_model(kind, **settings)
    except Exception as error:  # validation errors of transformers
        reason = " ".join(str(error).split())[:200]
        raise ExportError(f"{file.name}: no {kind} config can be made of its keys ({reason})") from error


class _Keys:
    """The keys of a file's architecture; whoever asks for one heeds it."""

    def __init__(self, file: GgufFile) -> None:
        prefix = f"{file.architecture}."
        self.file = file
        self.rest = {key.removeprefix(prefix): value for key, value in file.keys.items() if key.startswith(prefix)}
        self.unread = {name for name in file.tensors if _UNREAD_TENSORS.fullmatch(name) or name.startswith("rope_")}

    def get(self, name: str, default: Any = None) -> Any:
        """A value; one of a list whose entries are equal."""
        value = self.rest.pop(name, default)
        if not isinstance(value, list):
            return value
        if len(set(value)) == 1:
            return value[0]
        raise self.error(f"{name} differs between layers")

    def layers(self, name: str, count: int) -> list[Any]:
        """A value per layer."""
        value = self.rest.pop(name, None)
        found = value if isinstance(value, list) else [value] * count
        if not found or len(found) != count or any(one is None for one in found):
            raise self.error(f"the file lacks {self.file.architecture}.{name} of each layer", whole=True)
        return found

    def need(self, name: str) -> Any:
        """A value without which there is no model."""
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1 << 40:
            found = "lacks" if value is None else f"has {value!r} as"
            raise self.error(f"the file {found} {self.file.architecture}.{name}, so its model is not known", whole=True)
        return value

    def equal(self, name: str, expected: Any) -> None:
        """Take a key whose value the model has no choice of."""
        found = self.get(name)
        if found is not None and found != expected:
            raise self.error(f"{name} is {found}, where transformers' model has {expected}")

    def tensor(self, name: str) -> np.ndarray[Any, Any] | None:
        """A small tensor that belongs to the config, as numbers."""
        from gguf import dequantize

        self.unread.discard(name)
        found = self.file.tensors.get(name)
        return None if found is None else np.asarray(dequantize(found.rows, found.kind), np.float64)

    def refuse_rest(self) -> None:
        """Refuse keys and tensors that nobody asked for."""
        for name, neutral in _NEUTRAL.items():
            if neutral is None or self.rest.get(name) == neutral:
                self.rest.pop(name, None)
        names = [f"{self.file.architecture}.{name}={_shown(value)}" for name, value in sorted(self.rest.items())]
        names += [f"the tensor {name}" for name in sorted(self.unread) if "attn_rot_embd" not in name]
        if names:
            raise self.error(f"{', '.join(names)} cannot be heeded, and without the logits would be another model's")

    def error(self, text: str, *, whole: bool = False) -> ExportError:
        text = (
            text if whole or text.startswith((self.file.architecture, "the ")) else f"{self.file.architecture}.{text}"
        )
        return ExportError(f"{self.file.name}: {text}; export the safetensors checkpoint that it was made from")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _token_ids(file: GgufFile) -> Settings:
    """Tokens that begin, end and pad a text; every end of a turn ends one."""
    rows = file.tensors["token_embd.weight"].shape[0]
    found = {name: file.keys.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "eot", "eom", "padding")}
    known = {name: value for name, value in found.items() if isinstance(value, int) and 0 <= value < rows}
    ends = list(dict.fromkeys(known[name] for name in ("eos", "eot", "eom") if name in known))
    return {
        "bos_token_id": known.get("bos"),
        "eos_token_id": ends if len(ends) > 1 else next(iter(ends), None),
        "pad_token_id": known.get("padding"),
    }


def _decoder(keys: _Keys, model_type: str, *, eps: str = "rms_norm_eps") -> Settings:
    """What every decoder's file says; ``head_dim`` is taken from the query weights where no key has it."""
    tensors = keys.file.tensors
    heads, hidden = keys.need("attention.head_count"), keys.need("embedding_length")
    for name in ("token_embd.weight", "output_norm.weight"):
        if name not in tensors or tensors[name].shape[-1] != hidden:
            raise keys.error(f"the file has no {name} of {hidden} columns; fetch it again", whole=True)
    query = tensors.get("blk.0.attn_q.weight")
    head_dim = keys.get("attention.key_length") or (hidden if query is None else query.shape[0]) // heads
    keys.equal("attention.value_length", head_dim)
    epsilon = "attention.layer_norm_rms_epsilon" if "rms" in eps else "attention.layer_norm_epsilon"
    return {
        "model_type": model_type,
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "hidden_size": hidden,
        "num_hidden_layers": keys.need("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": keys.need("context_length"),
        "tie_word_embeddings": "output.weight" not in tensors,
        eps: keys.need(epsilon),
    }


def _rope(keys: _Keys, head_dim: int, context: int, *, partial: bool = False) -> Settings:
    """Rotary parameters, scaling and frequencies of a file."""
    rotated = keys.get("rope.dimension_count", head_dim)
    if rotated != head_dim and not partial:
        raise keys.error(f"rope.dimension_count is {rotated} and a head has {head_dim}")
    made: Settings = {"rope_type": "default", "rope_theta": float(keys.get("rope.freq_base", 10000.0))}
    if partial:
        made["partial_rotary_factor"] = rotated / head_dim
    made |= _scaling(keys, context)
    factors = keys.tensor("rope_freqs.weight")
    if factors is None or bool((factors == 1).all()):
        return made
    if made["rope_type"] != "default":
        raise keys.error("rope.scaling is given beside the tensor rope_freqs.weight")
    return made | _llama3(keys, factors, made["rope_theta"], rotated, context)


def _scaling(keys: _Keys, context: int) -> Settings:
    """``rope.scaling`` as transformers says it; a factor without a type is linear, as in llama.cpp."""
    factor = keys.get("rope.scaling.factor") or keys.get("rope.scale_linear") or 1.0
    kind = keys.get("rope.scaling.type", "linear" if factor != 1 else "none")
    original = keys.get("rope.scaling.original_context_length") or context
    attention = keys.get("rope.scaling.attn_factor", 1.0)
    for name, neutral in (("yarn_ext_factor", 1.0), ("yarn_attn_factor", 1.0), ("yarn_log_multiplier", 0.0)):
        if keys.rest.get(f"rope.scaling.{name}") in (neutral, 0.0 if kind != "yarn" else neutral):
            keys.get(f"rope.scaling.{name}")
    betas = {name: keys.get(f"rope.scaling.yarn_{name}", value) for name, value in _YARN_BETAS.items()}
    if kind == "yarn":
        made = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
        made |= {name: value for name, value in betas.items() if value != _YARN_BETAS[name]}
        scale = 1.0 if factor <= 1 else 0.1 * math.log(factor) + 1
        return made if attention == 1 else made | {"attention_factor": attention * scale}
    if attention != 1:
        raise keys.error(f"rope.scaling.attn_factor={attention} is given with rope scaling of the type {kind!r}")
    if kind == "none" or (kind == "linear" and factor == 1):
        return {}
    if kind != "linear":
        raise keys.error(f"rope.scaling.type={kind} cannot be heeded")
    return {"rope_type": "linear", "factor": factor}


def _llama3(keys: _Keys, factors: np.ndarray[Any, Any], theta: float, rotated: int, context: int) -> Settings:
    """Llama 3.1's scaling from the factors that its frequencies are divided by.

    Between two wavelengths the factor goes from 1 to the largest: 1 / f = (1 - s) / F + s, where s is linear in the
    frequency. The published low, high and original length are tried first, for they give the very numbers.
    """
    frequencies = theta ** -(np.arange(0, rotated, 2) / rotated)
    largest = float(factors.max())
    if factors.shape == frequencies.shape and largest > 1 and bool((factors >= 1).all()):
        for original, low, high in _llama3_candidates(factors, frequencies, largest, context):
            made = _llama3_factors(frequencies, largest, original, low, high)
            if bool((np.abs(made - factors) <= 2e-6 * factors).all()):
                return {
                    "rope_type": "llama3",
                    "factor": largest,
                    "low_freq_factor": low,
                    "high_freq_factor": high,
                    "original_max_position_embeddings": int(original),
                }
    raise keys.error("the tensor rope_freqs.weight holds frequencies of no rope that transformers has", whole=True)


def _llama3_candidates(
    factors: np.ndarray[Any, Any], frequencies: np.ndarray[Any, Any], largest: float, context: int
) -> list[tuple[float, float, float]]:
    """(original length, low, high): as published, and as the frequencies between the two ends say."""
    share = (1 / factors - 1 / largest) / (1 - 1 / largest)
    turns = frequencies / (2 * math.pi)  # per position
    inner = (share > 1e-4) & (share < 1 - 1e-4)
    upper, lower = turns[share >= 1 - 1e-4], turns[share <= 1e-4]
    if not len(lower):
        return []
    top = upper.min() if len(upper) else turns.max() * 2
    if inner.sum() >= 2:
        slope, start = np.polyfit(turns[inner], share[inner], 1)
    elif inner.sum() == 1:  # one point: from the nearest end that a straight line to it can have
        x, y = float(turns[inner][0]), float(share[inner][0])
        slope = min(y / (x - lower.max()), (1 - y) / (top - x)) if top > x else y / (x - lower.max())
        slope = max(slope, y / (x - lower.max()), (1 - y) / (top - x))
        start = y - slope * x
    else:
        slope = 1 / (top - lower.max())
        start = -slope * lower.max()
    original = context / 2  # any will do: low and high go with it
    low = float(-start / slope * original)
    return [(8192.0, 1.0, 4.0), (original, low, low + float(original / slope))]


def _llama3_factors(
    frequencies: np.ndarray[Any, Any], largest: float, original: float, low: float, high: float
) -> np.ndarray[Any, Any]:
    share = np.clip((original * frequencies / (2 * math.pi) - low) / (high - low), 0, 1)
    return cast("np.ndarray[Any, Any]", 1 / ((1 - share) / largest + share))


def _llama(keys: _Keys) -> Settings:
    made = _decoder(keys, "llama")
    made["rope_parameters"] = _rope(keys, made["head_dim"], made["max_position_embeddings"])
    has = keys.file.tensors.__contains__
    return made | {
        "intermediate_size": keys.need("feed_forward_length"),
        "attention_bias": has("blk.0.attn_q.bias"),
        "mlp_bias": has("blk.0.ffn_gate.bias"),
    }


def _qwen2(keys: _Keys) -> Settings:
    made = _decoder(keys, "qwen2")
    made["rope_parameters"] = _rope(keys, made["head_dim"], made["max_position_embeddings"])
    if made["head_dim"] * made["num_attention_heads"] != made["hidden_size"]:
        raise keys.error(
            f"attention.key_length is {made['head_dim']}, where transformers' model divides hidden by heads"
        )
    del made["head_dim"]
    return made | {"intermediate_size": keys.need("feed_forward_length"), "use_sliding_window": False}


def _qwen3(keys: _Keys) -> Settings:
    made = _decoder(keys, "qwen3")
    made["rope_parameters"] = _rope(keys, made["head_dim"], made["max_position_embeddings"])
    bias = "blk.0.attn_q.bias" in keys.file.tensors
    return made | {"intermediate_size": keys.need("feed_forward_length"), "attention_bias": bias}


def _experts(keys: _Keys) -> Settings:
    """Routed experts, where every layer has them."""
    return {
        "num_experts": keys.need("expert_count"),
        "num_experts_per_tok": keys.need("expert_used_count"),
        "moe_intermediate_size": keys.need("expert_feed_forward_length"),
        "intermediate_size": keys.get("feed_forward_length"),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _qwen2moe(keys: _Keys) -> Settings:
    made = _qwen2(keys) | {"model_type": "qwen2_moe", "norm_topk_prob": False}
    made |= {**_experts(keys), "intermediate_size": made["intermediate_size"]}
    return made | {"shared_expert_intermediate_size": keys.need("expert_shared_feed_forward_length")}


def _qwen3moe(keys: _Keys) -> Settings:
    made = _decoder(keys, "qwen3_moe")
    made["rope_parameters"] = _rope(keys, made["head_dim"], made["max_position_embeddings"])
    made |= _experts(keys)
    made["intermediate_size"] = made["intermediate_size"] or made["moe_intermediate_size"]
    return made | {"norm_topk_prob": True}  # llama.cpp's graph of this architecture always does


def _phi3(keys: _Keys) -> Settings:
    made = _decoder(keys, "phi3")
    head_dim, context = made.pop("head_dim"), made["max_position_embeddings"]
    long, short = keys.tensor("rope_factors_long.weight"), keys.tensor("rope_factors_short.weight")
    original = keys.get("rope.scaling.original_context_length") or context
    attention = keys.get("rope.scaling.attn_factor")
    if (long is None) != (short is None):
        raise keys.error("the file has one of rope_factors_long.weight and rope_factors_short.weight", whole=True)
    rope = _rope(keys, head_dim, context, partial=True)
    made["partial_rotary_factor"] = rope["partial_rotary_factor"]
    if long is not None and short is not None:
        rope |= {"rope_type": "longrope", "long_factor": _numbers(long), "short_factor": _numbers(short)}
        scale = context / original
        usual = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        if attention is not None and abs(attention - usual) > 1e-6:
            rope["attention_factor"] = attention
        made["original_max_position_embeddings"] = original
    elif attention not in (None, 1.0):
        raise keys.error(f"rope.scaling.attn_factor={attention} is given without rope_factors_long.weight")
    window = keys.get("attention.sliding_window") or None
    made |= {"rope_parameters": rope, "sliding_window": window}
    return made | {"intermediate_size": keys.need("feed_forward_length")}


def _numbers(array: np.ndarray[Any, Any]) -> list[float]:
    return [float(str(np.float32(number))) for number in array]


def _gemma2(keys: _Keys) -> Settings:
    made = _decoder(keys, "gemma2")
    made["rope_parameters"] = _rope(keys, made["head_dim"], made["max_position_embeddings"])
    per_head = made["num_hidden_layers"] == 46  # the one of 27B; the file does not say
    return made | {
        "intermediate_size": keys.need("feed_forward_length"),
        "sliding_window": keys.get("attention.sliding_window", 4096),
        "attn_logit_softcapping": keys.get("attn_logit_softcapping", 50.0) or None,
        "final_logit_softcapping": keys.get("final_logit_softcapping", 30.0) or None,
        "query_pre_attn_scalar": _query_scalar(made, per_head=per_head),
    }


def _query_scalar(made: Settings, *, per_head: bool) -> Any:
    """Gemma's largest models scale queries by hidden size per head, the others by head size (llama.cpp does so too)."""
    return made["hidden_size"] // made["num_attention_heads"] if per_head else made["head_dim"]


def _gemma3(keys: _Keys) -> Settings:
    made = _decoder(keys, "gemma3_text")
    count = made["num_hidden_layers"]
    # Scaling is of the layers that see everything; those with a window keep theirs.
    full = _rope(keys, made["head_dim"], made["max_position_embeddings"])
    local = {"rope_type": "default", "rope_theta": float(keys.get("rope.freq_base_swa", 10000.0))}
    pattern = keys.get("attention.sliding_window_pattern", 6)
    if not isinstance(pattern, int) or isinstance(pattern, bool) or pattern < 1:
        raise keys.error(f"attention.sliding_window_pattern={pattern} cannot be heeded")
    window = keys.get("attention.sliding_window") or 0
    kinds = ["full_attention" if not window or (i + 1) % pattern == 0 else "sliding_attention" for i in range(count)]
    return made | {
        "intermediate_size": keys.need("feed_forward_length"),
        "rope_parameters": {"full_attention": full, "sliding_attention": local},
        "layer_types": kinds,
        "sliding_window": window or made["max_position_embeddings"],
        "attn_logit_softcapping": keys.get("attn_logit_softcapping") or None,
        "final_logit_softcapping": keys.get("final_logit_softcapping") or None,
        "query_pre_attn_scalar": _query_scalar(made, per_head=count == 62),  # 62: the one of 27B
    }


def _gemma4(keys: _Keys) -> Settings:
    """Layers with a window have heads, key-value heads and a rope of their own."""
    count = keys.file.keys.get(f"{keys.file.architecture}.block_count", 0)
    slides = keys.layers("attention.sliding_window_pattern", count)
    key_values = keys.layers("attention.head_count_kv", count)
    widths = keys.layers("feed_forward_length", count)
    if any(isinstance(value, bool) or not isinstance(value, int) for value in (*key_values, *widths)):
        raise keys.error("the file has no attention.head_count_kv or no feed_forward_length of its layers", whole=True)
    head_dim = keys.need("attention.key_length_swa")
    keys.equal("attention.value_length_swa", head_dim)
    keys.equal("rope.dimension_count_swa", head_dim)
    shared = keys.get("attention.shared_kv_layers", 0)
    per_layer = keys.get("embedding_length_per_layer_input", 0)
    made = _decoder(keys, "gemma4_text")
    made |= {"global_head_dim": made["head_dim"], "head_dim": head_dim, "intermediate_size": widths[0]}
    wide = [widths[0] * (2 if index >= count - shared else 1) for index in range(count)]
    if widths not in ([widths[0]] * count, wide):
        raise keys.error(f"feed_forward_length={_shown(widths)} is of no model that transformers has")
    local, everywhere = ({kv for kv, slide in zip(key_values, slides, strict=True) if slide == one} for one in (1, 0))
    if len(local) > 1 or len(everywhere) > 1:
        raise keys.error(f"attention.head_count_kv={_shown(key_values)} is of no model that transformers has")
    has = keys.file.tensors.__contains__
    made |= {
        "num_key_value_heads": next(iter(local or everywhere)),
        "num_global_key_value_heads": next(iter(everywhere or local)),
        "attention_k_eq_v": any(
            not slide and not has(f"blk.{index}.attn_v.weight") for index, slide in enumerate(slides[: count - shared])
        ),
        "layer_types": ["sliding_attention" if slide else "full_attention" for slide in slides],
        "num_kv_shared_layers": shared,
        "use_double_wide_mlp": shared > 0 and widths[-1] == 2 * widths[0],
        "hidden_size_per_layer_input": per_layer,
        "vocab_size_per_layer_input": made["vocab_size"],
        "sliding_window": keys.need("attention.sliding_window"),
        "final_logit_softcapping": keys.get("final_logit_softcapping") or None,
        "rope_parameters": {
            "full_attention": _proportional(keys, made["global_head_dim"]),
            "sliding_attention": {"rope_type": "default", "rope_theta": float(keys.get("rope.freq_base_swa", 10000.0))},
        },
    }
    if not made["attention_k_eq_v"] and local | everywhere != {made["num_key_value_heads"]}:
        raise keys.error(f"attention.head_count_kv={_shown(key_values)} is of no model that transformers has")
    return made


def _proportional(keys: _Keys, head_dim: int) -> Settings:
    """Gemma 4's rope of full layers: the first frequencies of a head; those that do not turn are divided by 1e30."""
    keys.equal("rope.dimension_count", head_dim)
    theta = float(keys.get("rope.freq_base", 10000.0))
    factors = keys.tensor("rope_freqs.weight")
    turned = head_dim // 2 if factors is None else int((factors == 1).sum())
    if factors is not None and (len(factors) != head_dim // 2 or bool((factors[turned:] < 1e29).any())):
        raise keys.error("the tensor rope_freqs.weight holds frequencies of no rope that transformers has", whole=True)
    return {"rope_type": "proportional", "rope_theta": theta, "partial_rotary_factor": 2 * turned / head_dim}


def _starcoder2(keys: _Keys) -> Settings:
    made = _decoder(keys, "starcoder2", eps="norm_epsilon")
    head_dim = made.pop("head_dim")
    made["rope_parameters"] = _rope(keys, head_dim, made["max_position_embeddings"])
    made["use_bias"] = "blk.0.attn_q.bias" in keys.file.tensors
    return made | {"intermediate_size": keys.need("feed_forward_length"), "sliding_window": None}


def _nemotron(keys: _Keys) -> Settings:
    made = _decoder(keys, "nemotron", eps="norm_eps")
    made["rope_parameters"] = _rope(keys, made["head_dim"], made["max_position_embeddings"], partial=True)
    made["partial_rotary_factor"] = made["rope_parameters"]["partial_rotary_factor"]
    return made | {"intermediate_size": keys.need("feed_forward_length")}


def _stablelm(keys: _Keys) -> Settings:
    made = _decoder(keys, "stablelm", eps="layer_norm_eps")
    head_dim = made.pop("head_dim")
    made["rope_parameters"] = _rope(keys, head_dim, made["max_position_embeddings"], partial=True)
    made["partial_rotary_factor"] = made["rope_parameters"]["partial_rotary_factor"]
    keys.get("use_parallel_residual")  # llama.cpp goes by the tensor, as here
    has = keys.file.tensors.__contains__
    return made | {
        "intermediate_size": keys.need("feed_forward_length"),
        "use_qkv_bias": has("blk.0.attn_q.bias"),
        "use_parallel_residual": not has("blk.0.ffn_norm.weight"),
        "qk_layernorm": has("blk.0.attn_q_norm.weight"),
    }


def _gpt2(keys: _Keys) -> Settings:
    made = _decoder(keys, "gpt2", eps="layer_norm_epsilon")
    made["n_inner"] = keys.need("feed_forward_length")
    for name in ("head_dim", "num_key_value_heads"):
        del made[name]
    return made


def _transformers(*taken: str) -> Callable[[_Keys], Settings]:
    """Architectures whose config transformers' newer reader makes of these keys, and refuses to make without."""

    def build(keys: _Keys) -> Settings:
        from transformers.integrations.gguf import get_gguf_config

        counts = {"tokenizer.ggml.tokens": keys.file.tensors["token_embd.weight"].shape[0]}
        try:
            made = get_gguf_config({**keys.file.keys, **counts}, tuple(keys.file.tensors))
        except KeyError as error:
            raise keys.error(f"the file lacks {error.args[0]}, so its model is not known", whole=True) from error
        for name in taken:
            keys.rest.pop(name, None)
        for name in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
            keys.equal(name, made["hidden_size"] // made["num_attention_heads"])
        return cast(Settings, made)

    return build


_COMMON = (
    "context_length embedding_length feed_forward_length block_count attention.head_count attention.head_count_kv "
    "attention.layer_norm_rms_epsilon rope.freq_base"
).split()
_QWEN35 = (
    "attention.key_length attention.value_length full_attention_interval ssm.conv_kernel ssm.state_size "
    "ssm.group_count ssm.time_step_rank ssm.inner_size nextn_predict_layers rope.dimension_sections "
    "rope.dimension_count"
).split()
_MOE = "expert_feed_forward_length expert_shared_feed_forward_length expert_count expert_used_count".split()

_BUILDERS: Mapping[str, Callable[[_Keys], Settings]] = {
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "gemma4": _gemma4,
    "gpt2": _gpt2,
    "lfm2": _transformers(*_COMMON, "shortconv.l_cache"),
    "llama": _llama,
    "nemotron": _nemotron,
    "phi3": _phi3,
    "qwen2": _qwen2,
    "qwen2moe": _qwen2moe,
    "qwen3": _qwen3,
    "qwen35": _transformers(*_COMMON, *_QWEN35),
    "qwen35moe": _transformers(*_COMMON, *_QWEN35, *_MOE),
    "qwen3moe": _qwen3moe,
    "stablelm": _stablelm,
    "starcoder2": _starcoder2,
}
