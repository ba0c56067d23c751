"""Reads a :class:`ModelSpec` from a transformers config: layer kinds, windows, cache slots, heads, features.

Which layers slide, and how far, is asked of transformers' own cache, so that it can't differ from the reference.
"""

from __future__ import annotations

from typing import Any

from exporter.errors import ExportError
from exporter.spec import LayerSpec, ModelSpec, SlotSpec

__all__ = ["model_spec"]

_LINEAR_STATE = {"linear_attention", "mamba", "mamba2", "conv", "recurrent", "hybrid", "chunked_attention"}


def model_spec(config: Any, model: Any, dtype: str) -> ModelSpec:
    """Describe a causal language model.

    Args:
        config: The text config.
        model: The model built from it; parameters may be on the meta device.
        dtype: dtype of the exported weights.

    Raises:
        ExportError: A layer keeps a state that is no key-value cache, or attends in both directions.
    """
    layers, slots = _layers_and_slots(config, model)
    features, missing = _features(config, layers, slots)
    return ModelSpec(
        model_type=config.model_type,
        architecture=type(model).__name__,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        heads=config.num_attention_heads,
        layers=layers,
        slots=slots,
        max_position=int(getattr(config, "max_position_embeddings", None) or 2048),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        dtype=dtype,
        tied_embeddings=model.get_output_embeddings().weight is model.get_input_embeddings().weight,
        bos_token_id=config.bos_token_id,
        eos_token_ids=_as_tuple(config.eos_token_id),
        pad_token_id=config.pad_token_id,
        features=features,
        not_exercised=missing,
    )


def _as_tuple(ids: int | list[int] | None) -> tuple[int, ...]:
    if ids is None:
        return ()
    return tuple(ids) if isinstance(ids, list | tuple) else (ids,)


def _layers_and_slots(config: Any, model: Any) -> tuple[tuple[LayerSpec, ...], tuple[SlotSpec, ...]]:
    from transformers import DynamicCache

    _refuse_unsupported(config)
    attentions = _attention_modules(model)
    cache_layers = DynamicCache(config=config).layers
    types = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    layers: list[LayerSpec] = []
    slots: list[SlotSpec] = []
    owner: dict[str, int] = {}
    for index in range(config.num_hidden_layers):
        attention = attentions[index]
        shared = bool(getattr(attention, "is_kv_shared_layer", False))
        if not shared:
            cache_layer = cache_layers[index]
            window = int(cache_layer.sliding_window) if getattr(cache_layer, "is_sliding", False) else None
            heads, head_dim, value_dim = _head_sizes(config, attention, index)
            kind = "full" if window is None else "sliding"
            slots.append(SlotSpec(len(slots), index, kind, window, heads, head_dim, value_dim))  # type: ignore[arg-type]
            owner[types[index]] = len(slots) - 1
        slot = slots[owner[types[index]]]
        layers.append(LayerSpec(index, slot.kind, slot.window, slot.slot, owns_slot=not shared))
    readers = {s.slot: tuple(x.index for x in layers if x.slot == s.slot and not x.owns_slot) for s in slots}
    return tuple(layers), tuple(
        SlotSpec(s.slot, s.layer, s.kind, s.window, s.kv_heads, s.head_dim, s.value_head_dim, readers[s.slot])
        for s in slots
    )


def _refuse_unsupported(config: Any) -> None:
    for kind in getattr(config, "layer_types", None) or ():
        if kind in _LINEAR_STATE:
            raise ExportError(
                f"{config.model_type}: layer type {kind!r} keeps a state that is no key-value cache; "
                "only full and sliding attention layers can be exported"
            )
    if getattr(config, "use_bidirectional_attention", None) in ("all", True):
        raise ExportError(
            f"{config.model_type}: use_bidirectional_attention={config.use_bidirectional_attention!r} looks ahead; "
            "a causal cache can't serve it"
        )


def _attention_modules(model: Any) -> dict[int, Any]:
    """Attention module of each layer: the one that has both a layer index and a query projection."""
    found: dict[int, Any] = {}
    for _, module in model.named_modules():
        index = getattr(module, "layer_idx", None)
        if isinstance(index, int) and any(hasattr(module, name) for name in ("q_proj", "qkv_proj", "query_key_value")):
            found.setdefault(index, module)
    missing = sorted(set(range(model.config.num_hidden_layers)) - found.keys())
    if missing:
        raise ExportError(
            f"{model.config.model_type}: layer {missing[0]} has no attention module with q_proj or qkv_proj; "
            "this architecture is not a plain key-value decoder"
        )
    return found


def _head_sizes(config: Any, attention: Any, index: int) -> tuple[int, int, int]:
    """(kv_heads, head_dim, value_head_dim) of one layer, from the projections themselves where they are plain."""
    per_layer = getattr(config, "per_layer_config", None)
    layer_config = per_layer[index] if per_layer else config
    head_dim = int(
        getattr(attention, "head_dim", None)
        or getattr(layer_config, "head_dim", None)
        or config.hidden_size // config.num_attention_heads
    )
    projection = getattr(attention, "k_proj", None)
    if projection is not None:
        return projection.weight.shape[0] // head_dim, head_dim, head_dim
    heads = getattr(layer_config, "num_key_value_heads", None) or config.num_attention_heads
    return int(heads), head_dim, head_dim


def _features(
    config: Any, layers: tuple[LayerSpec, ...], slots: tuple[SlotSpec, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Architecture features that this checkpoint exercises, and the known ones that it does not."""
    kinds = {layer.kind for layer in layers}
    ropes = str(getattr(config, "rope_parameters", None))
    table = {
        "full attention": "full" in kinds,
        "sliding attention": "sliding" in kinds,
        "grouped-query attention": any(slot.kv_heads < config.num_attention_heads for slot in slots),
        "per-layer input embeddings": bool(getattr(config, "hidden_size_per_layer_input", 0)),
        "tied embeddings": bool(getattr(config, "tie_word_embeddings", False)),
        "KV sharing": any(not layer.owns_slot for layer in layers),
        "mixture of experts": bool(getattr(config, "enable_moe_block", False))
        or bool(getattr(config, "num_local_experts", 0) or getattr(config, "num_experts", 0)),
        "double-wide MLP": bool(getattr(config, "use_double_wide_mlp", False)),
        "values from the key projection": bool(getattr(config, "attention_k_eq_v", False)),
        "final logit softcap": getattr(config, "final_logit_softcapping", None) is not None,
        "attention softcap": getattr(config, "attn_logit_softcapping", None) is not None,
        "different head sizes": len({slot.head_dim for slot in slots}) > 1,
        "different key-value heads": len({slot.kv_heads for slot in slots}) > 1,
        "partial rotary embedding": "partial_rotary_factor" in ropes,
        "scaled rotary embedding": any(name in ropes for name in ("yarn", "llama3", "longrope", "linear", "dynamic")),
    }
    return tuple(k for k, v in table.items() if v), tuple(k for k, v in table.items() if not v)
