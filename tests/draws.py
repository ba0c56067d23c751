"""What is drawn at random: a small decoder, a case, and how it is exported; all JSON, so that it can be printed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from kvparity.exporter.contract.spec import DECODE, PREFILL

__all__ = ["Draw", "checkpoint_draws", "draws", "state_draws", "traits"]

Draw = dict[str, Any]
S, F = "sliding_attention", "full_attention"
_KINDS = (S, F)
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Types that take any pattern of sliding and full layers, one window for all, or full layers only.
_PATTERNED = ("gemma4_text", "gemma3_text", "gemma3n_text", "cohere2", "olmo3", "gpt_oss", "ministral", "exaone4")
_WINDOWED = ("mistral", "mixtral", "phi3", "starcoder2", "gemma2", "qwen2")
_PLAIN = ("llama", "qwen3", "qwen3_moe", "granite", "smollm3", "olmo2", "cohere", "glm4", "stablelm", "deepseek_v3")
_ROPED = ("llama", "qwen3", "smollm3", "mistral", "granite", "olmo2", "ministral")  # one rope for all layers
_ROPED_BY_KIND = ("gemma3_text", "olmo3")
_NO_HEAD_SIZE = ("stablelm",)  # it is hidden size over heads; the field would reach the rotary embedding alone
_ONE_EXPERT_COUNT = ("qwen3_moe", "mixtral", "gpt_oss")
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
_ROPES: tuple[Draw, ...] = (
    {"rope_type": "default", "rope_theta": 10000.0},
    {"rope_type": "default", "rope_theta": 500000.0},
    {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32},
    {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, **_LLAMA3},
)
_WAYS = (
    ("dynamic", "portable"),
    ("static", "portable"),
    ("dynamic", "ort"),
    ("shared", "ort"),
    ("dynamic", "modern"),
    ("static", "modern"),
    ("dynamic", "bare"),
)


@st.composite
def draws(draw: st.DrawFn) -> Draw:
    """A configuration, a case and options, as JSON."""
    model_type = draw(st.sampled_from((*_PLAIN, *_WINDOWED, *_PATTERNED, *["gemma4_text"] * 4)))  # it has most fields
    config = draw(_config(model_type))
    total = draw(st.integers(1, 24))
    case = draw(_case(total))
    return {"model_type": model_type, "config": config, "case": case, "options": draw(_options(total))}


_DELTA, _MAMBA2 = ("qwen3_next", "qwen3_5_text", "olmo_hybrid"), ("bamba", "granitemoehybrid", "falcon_h1")
_SINGLE = ("mamba", "falcon_mamba", "jamba")  # whose transformers takes single tokens only after the first call


@st.composite
def state_draws(draw: st.DrawFn) -> Draw:
    """The same of models that keep states."""
    model_type = draw(st.sampled_from(("lfm2", "lfm3", "mamba2", *_DELTA, *_MAMBA2, *_SINGLE)))
    config = draw(_state_config(model_type))
    total = draw(st.integers(1, 40))
    case = draw(_case(total))
    if model_type in _SINGLE:
        case["chunks"] = [case["chunks"][0], *[1] * (total - case["chunks"][0])]
    case["pads"] = [min(pad, case["chunks"][0] - 1) for pad in case["pads"]]  # transformers masks no single token
    options = draw(_options(total))
    if (options["layout"], options["profile"]) in (("shared", "ort"), ("dynamic", "bare")):
        options |= {"layout": "dynamic", "profile": "ort"}
    return {"model_type": model_type, "config": config, "case": case, "options": options}


@st.composite
def _state_config(draw: st.DrawFn, model_type: str) -> Draw:
    """Sizes of convolutions and recurrences; layers in any order."""
    hidden, layers, kernel = 16 * draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(2, 5))
    config: Draw = {"num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    config |= {"vocab_size": draw(st.integers(5, 40)), "hidden_size": hidden}
    types = draw(st.lists(st.sampled_from((F, "linear_attention")), min_size=layers, max_size=layers))
    if model_type == "olmo_hybrid":  # its config asks for both kinds
        types = ["linear_attention", F, *types[2:]]
        config["num_hidden_layers"] = len(types)
    size, groups = draw(st.sampled_from((4, 8))), draw(st.sampled_from((1, 2)))
    if model_type in ("lfm2", "lfm3"):
        own = {"layer_types": [F if kind == F else "conv" for kind in types], "conv_L_cache": kernel}
    elif model_type in _DELTA:
        shared = 1 if model_type == "olmo_hybrid" else draw(st.sampled_from((1, 2)))
        own = {"layer_types": types, "linear_num_key_heads": groups, "linear_num_value_heads": groups * shared}
        own |= {"linear_key_head_dim": size, "linear_value_head_dim": draw(st.sampled_from((4, 12)))}
        own |= {"linear_conv_kernel_dim": kernel}
    elif model_type == "mamba2":
        own = {"num_heads": 4, "head_dim": hidden // 2, "n_groups": groups, "state_size": size, "expand": 2}
        own |= {"conv_kernel": kernel, "chunk_size": draw(st.sampled_from((4, 16)))}
    elif model_type in _MAMBA2:
        own = {"mamba_n_heads": 4, "mamba_d_head": hidden // 2, "mamba_n_groups": groups, "mamba_d_state": size}
        own |= {"mamba_expand": 2, "mamba_d_conv": kernel, "mamba_chunk_size": draw(st.sampled_from((4, 16)))}
        own |= {"bamba": {"attn_layer_indices": [n for n, kind in enumerate(types) if kind == F]}}.get(model_type, {})
        own |= {"granitemoehybrid": {"layer_types": types, "shared_intermediate_size": 24}}.get(model_type, {})
        own |= {"falcon_h1": {"mamba_d_ssm": 2 * hidden}}.get(model_type, {})
    elif model_type == "jamba":
        own = {"mamba_d_state": size, "mamba_dt_rank": 4, "mamba_d_conv": kernel, "num_experts": 2}
        own |= {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 0}
    else:
        own = {"state_size": size, "time_step_rank": draw(st.sampled_from((2, 4))), "conv_kernel": kernel}
    return {**config, **own}


@st.composite
def checkpoint_draws(draw: st.DrawFn) -> Draw:
    """A configuration, how its checkpoint lies about, and how it is exported, as JSON."""
    model_type = draw(st.sampled_from((*_PLAIN, *_WINDOWED, *_PATTERNED)))
    config = draw(_config(model_type))
    ids = st.sampled_from((-1, 0, 1, 2, config["vocab_size"] - 1, config["vocab_size"], 500, None))
    wrapped = model_type in ("llama", "mistral", "qwen2", "qwen3", "cohere2", "gemma2", "granite", "gemma3_text")
    checkpoint = {
        "stored": draw(st.sampled_from(("float32", "bfloat16", "float16"))),
        "named": draw(st.sampled_from(("dtype", "torch_dtype", None))),
        "wrapper": draw(st.sampled_from((None, None, "llava", "mistral3", "aya_vision"))) if wrapped else None,
        "head": draw(st.sampled_from(("as saved", "as saved", "same", "other", "absent"))),
        "tied": draw(st.sampled_from((None, None, True, False))),
        "shards": draw(st.integers(1, 3)),
        "stale": draw(st.sampled_from(("nothing", "nothing", "index", "copy"))),
        "extra": draw(st.booleans()),
        "missing": draw(st.integers(0, 9)) == 9,
        "ids": {name: draw(ids) for name in draw(st.sets(st.sampled_from(_IDS)))},
        "generation_config": draw(st.booleans()),
        "old_rope": draw(st.booleans()),
    }
    options = {
        "dtype": draw(st.sampled_from(("float32", "float32", "float16"))),  # bfloat16 runs in no plain CPU engine
        "profile": draw(st.sampled_from(("portable", "portable", "ort", "modern"))),
    }
    recorded, limit = draw(st.booleans()), draw(st.sampled_from((None, 2, 9, 40)))
    whole = {"model_type": model_type, "config": config, "checkpoint": checkpoint, "options": options}
    return {**whole, "recorded": recorded, "limit": limit}


@st.composite
def _config(draw: st.DrawFn, model_type: str) -> Draw:
    heads = draw(st.sampled_from((1, 2, 4)))
    layers = draw(st.integers(1, 3))
    config: Draw = {
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": draw(st.sampled_from([n for n in (1, 2, 4) if heads % n == 0])),
        "head_dim": draw(st.sampled_from((4, 8, 16))),
        "vocab_size": draw(st.integers(5, 40)),
        "tie_word_embeddings": draw(st.booleans()),
        "hidden_size": 16 * draw(st.integers(1, 2)),
    }
    if model_type in _NO_HEAD_SIZE:
        del config["head_dim"]
        partial = draw(st.sampled_from((0.5, 1.0)))  # half a column, as 0.25 of 4 would give, fails in transformers
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": partial}
    if model_type in (*_PATTERNED, *_WINDOWED):  # elsewhere the field is stray: the cache heeds it, the masks don't
        config["sliding_window"] = draw(st.integers(1, 9))
    if model_type in _PATTERNED:
        config["layer_types"] = draw(st.lists(st.sampled_from(_KINDS), min_size=layers, max_size=layers))
    if model_type in _ROPED:
        config["rope_parameters"] = draw(st.sampled_from(_ROPES))
    if model_type in _ROPED_BY_KIND:
        config["rope_parameters"] = {kind: draw(st.sampled_from(_ROPES)) for kind in _KINDS}
    if model_type in _ONE_EXPERT_COUNT:
        name = "num_experts" if model_type == "qwen3_moe" else "num_local_experts"
        config |= {name: draw(st.integers(2, 4)), "num_experts_per_tok": draw(st.integers(1, 2))}
    own = {"gemma4_text": _gemma4, "gemma3n_text": _gemma3n, "qwen2": _qwen2, "deepseek_v3": _latent}.get(model_type)
    return config | draw(own(config)) if own else config


@st.composite
def _gemma4(draw: st.DrawFn, config: Draw) -> Draw:
    """What only Gemma 4 has; sharing layers come last and repeat kinds that came before."""
    config["layer_types"][-1] = F
    moe = draw(st.booleans())
    full_rope = {"rope_type": "proportional", "rope_theta": draw(st.sampled_from((10000.0, 1000000.0)))}
    shared = draw(_sharing(config))
    return {
        "num_kv_shared_layers": shared,
        "use_double_wide_mlp": draw(st.booleans()),
        "attention_k_eq_v": draw(st.booleans()),
        "global_head_dim": draw(st.sampled_from((4, 8, 16, 24))),
        "hidden_size_per_layer_input": draw(st.sampled_from((0, 4))),
        "vocab_size_per_layer_input": config["vocab_size"],
        "final_logit_softcapping": draw(st.sampled_from((None, 2.0))),
        "rope_parameters": {
            S: draw(st.sampled_from(_ROPES)),
            F: {**full_rope, "partial_rotary_factor": draw(st.sampled_from((0.25, 0.5, 1.0)))},
        },
        "enable_moe_block": moe,
        **({"num_experts": draw(st.integers(2, 4)), "top_k_experts": 2, "moe_intermediate_size": 8} if moe else {}),
    }


@st.composite
def _gemma3n(draw: st.DrawFn, config: Draw) -> Draw:
    """What only Gemma 3n has: several streams, sparse activations, low-rank layers, sharing."""
    layers = config["num_hidden_layers"]
    return {
        "num_kv_shared_layers": draw(_sharing(config)),
        "intermediate_size": [draw(st.sampled_from((16, 24)))] * layers,
        "activation_sparsity_pattern": draw(st.lists(st.sampled_from((0.0, 0.95)), min_size=layers, max_size=layers)),
        "hidden_size_per_layer_input": draw(st.sampled_from((4, 8))),
        "vocab_size_per_layer_input": config["vocab_size"],
        "laurel_rank": 4,
        "final_logit_softcapping": draw(st.sampled_from((2.0, 30.0))),
    }


@st.composite
def _sharing(draw: st.DrawFn, config: Draw) -> int:
    """How many of the last layers share; each needs an earlier layer of its kind that does not."""
    layers, types = config["num_hidden_layers"], config["layer_types"]
    shared = draw(st.integers(0, layers - 1))
    return shared if set(types[: layers - shared]) == set(types) else 0


@st.composite
def _qwen2(draw: st.DrawFn, config: Draw) -> Draw:
    """Sliding from some layer on."""
    return {"use_sliding_window": True, "max_window_layers": draw(st.integers(0, config["num_hidden_layers"]))}


@st.composite
def _latent(draw: st.DrawFn, config: Draw) -> Draw:
    """Multi-head latent attention and DeepSeek's router."""
    rope = draw(st.sampled_from((2, 4, 8)))
    return {
        "num_key_value_heads": config["num_attention_heads"],
        "q_lora_rank": draw(st.sampled_from((None, 8))),
        "kv_lora_rank": draw(st.sampled_from((4, 8))),
        "qk_nope_head_dim": draw(st.sampled_from((4, 8))),
        "qk_rope_head_dim": rope,
        "head_dim": rope,
        "v_head_dim": draw(st.sampled_from((4, 12))),
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": draw(st.integers(0, 1)),
    }


@st.composite
def _options(draw: st.DrawFn, total: int) -> Draw:
    """Layout and profile; the static layout with buffers that just fit or do not, and any chunk and batch."""
    layout, profile = draw(st.sampled_from(_WAYS))
    options: dict[str, Any] = {
        "layout": layout,
        "profile": profile,
        "sliding_cache": draw(st.sampled_from(("bounded", "full"))),
        "logits": draw(st.sampled_from(("all", "last"))),
    }
    if layout == "static":
        room = max(2, total + draw(st.integers(0, 3)))
        options |= {"max_len": room, "chunk": draw(st.integers(1, room)), "batch": draw(st.integers(1, 3))}
    return options


@st.composite
def _case(draw: st.DrawFn, total: int) -> Draw:
    chunks: list[int] = []
    while sum(chunks) < total:
        chunks.append(draw(st.integers(1, total - sum(chunks))))
    rows = draw(st.integers(1, 3))
    pads = draw(st.lists(st.integers(0, total - 1), min_size=rows, max_size=rows))
    return {"chunks": chunks, "pads": pads, "first": draw(st.sampled_from((PREFILL, DECODE)))}


def traits(draw: Draw) -> Iterator[tuple[str, str]]:
    """(field, value) pairs of a draw, for counting what a run covered."""
    config, case, options = draw["config"], draw.get("case", {}), draw["options"]
    yield "model type", draw["model_type"]
    if checkpoint := draw.get("checkpoint"):
        yield "exported as", f"{options['dtype']} {options['profile']}"
        yield from ((field, str(checkpoint[field])) for field in checkpoint if field != "ids")
        for field, value in checkpoint["ids"].items():
            yield field, str(value)
        return
    yield "exported as", f"{options['layout']} {options['profile']}"
    yield "sliding caches", options.get("sliding_cache", "bounded")
    yield "logits", options.get("logits", "all")
    types = config.get("layer_types")
    yield (
        "layers",
        "".join({S: "s", F: "F"}.get(kind, kind[0]) for kind in types)
        if types
        else str(config.get("num_hidden_layers")),
    )
    yield "window", str(config.get("sliding_window", "none"))
    yield "heads / kv heads", f"{config.get('num_attention_heads')}/{config.get('num_key_value_heads')}"
    yield "head size", str(config.get("head_dim", "hidden / heads"))
    yield "full layers' head size", str(config.get("global_head_dim", "the same"))
    yield "vocabulary", "5 to 16" if config.get("vocab_size", 96) <= 16 else "17 to 40"
    yield "embeddings", "tied" if config.get("tie_word_embeddings") else "not tied"
    for kind in sorted(set(_ropes(config))):
        yield "rope", kind
    if config.get("num_kv_shared_layers"):
        yield "feature", "KV sharing"
    if any("experts" in key for key in config):
        yield "feature", "experts"
    for key, name in _SWITCHES.items():
        if config.get(key):
            yield "feature", name
    yield from _case_traits(case, config.get("sliding_window"))


_LETTERS = {S: "s", F: "F"}  # the first letter of other kinds
_SWITCHES = {
    "use_double_wide_mlp": "double-wide MLP",
    "attention_k_eq_v": "values are keys",
    "hidden_size_per_layer_input": "per-layer inputs",
    "final_logit_softcapping": "softcap of the logits",
    "kv_lora_rank": "latent attention",
}


def _ropes(config: Draw) -> Iterator[str]:
    rope = config.get("rope_parameters")
    if rope is None:
        yield "the type's own"
    elif "rope_type" in rope:
        yield rope["rope_type"]
    else:
        yield from (part["rope_type"] for part in rope.values())


def _case_traits(case: Draw, window: int | None) -> Iterator[tuple[str, str]]:
    chunks, pads = case["chunks"], case["pads"]
    yield "rows", str(len(pads))
    yield "calls", "one" if len(chunks) == 1 else "2 to 4" if len(chunks) <= 4 else "5 and more"
    yield "first graph", case["first"]
    if window is not None:
        yield "length", "past the window" if sum(chunks) > window else "within the window"
    if len(set(pads)) > 1:
        yield "padding", "ragged"
    if any(pad >= chunks[0] for pad in pads):
        yield "padding", "a row's first call is padding only"
