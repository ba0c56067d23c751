"""Which architecture features a model has, so that a bundle can say what its verdict proves and what it does not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from kvparity.exporter.contract.spec import LayerSpec, ModelSpec, SlotSpec

__all__ = ["coverage_lines", "features_of", "unproven"]

_SCALED_ROPES = ("yarn", "llama3", "longrope", "linear", "dynamic")


def features_of(
    config: Any, model: Any, layers: tuple[LayerSpec, ...], slots: tuple[SlotSpec, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The known features that a model has, and those that it does not have.

    Args:
        config: The text config.
        model: The model built from it; parameters may be on the meta device.
        layers: Its layers.
        slots: Its cache slots.
    """
    table = {**_cache_features(config, layers, slots), **_config_features(config), **_module_features(model)}
    table["double-wide MLP"] &= table["KV sharing"]  # only sharing layers are made wide
    table["tied embeddings"] = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    return tuple(k for k, v in table.items() if v), tuple(k for k, v in table.items() if not v)


def _cache_features(config: Any, layers: tuple[LayerSpec, ...], slots: tuple[SlotSpec, ...]) -> dict[str, bool]:
    kinds = {layer.kind for layer in layers}
    rows = [slot for slot in slots if slot.kv_heads]
    states = {state.part for slot in slots for state in slot.states}
    return {
        "full attention": "full" in kinds,
        "sliding attention": "sliding" in kinds,
        "chunked attention": "chunked" in kinds,
        "grouped-query attention": any(slot.kv_heads < config.num_attention_heads for slot in rows),
        "KV sharing": any(not layer.owns_slot for layer in layers),
        "different head sizes": len({slot.head_dim for slot in rows}) > 1,
        "different key-value heads": len({slot.kv_heads for slot in rows}) > 1,
        "value heads of another size": any(slot.head_dim != slot.value_head_dim for slot in rows),
        "short convolutions": "conv_state" in states,
        "linear attention": "recurrent_state" in states,
        "state-space layers": "ssm_state" in states,
    }


def _config_features(config: Any) -> dict[str, bool]:
    ropes = str(getattr(config, "rope_parameters", None))
    without = getattr(config, "no_rope_layers", None) or ()  # 0 marks a layer without rotary embedding
    return {
        "per-layer input embeddings": bool(getattr(config, "hidden_size_per_layer_input", 0)),
        "double-wide MLP": bool(getattr(config, "use_double_wide_mlp", False)),
        "final logit softcap": getattr(config, "final_logit_softcapping", None) is not None,
        "attention softcap": getattr(config, "attn_logit_softcapping", None) is not None,
        "partial rotary embedding": _partial(config, ropes),
        "scaled rotary embedding": any(f"'rope_type': '{name}'" in ropes for name in _SCALED_ROPES),
        "layers without rotary embedding": 0 in without,
    }


def _partial(config: Any, ropes: str) -> bool:
    factor = getattr(config, "partial_rotary_factor", None)
    named = [part.split(",")[0].strip(" }") for part in ropes.split("'partial_rotary_factor':")[1:]]
    return any(float(value) < 1 for value in [*named, *([factor] if factor is not None else [])])


def _module_features(model: Any) -> dict[str, bool]:
    attentions = [module for module in model.modules() if hasattr(module, "layer_idx") and hasattr(module, "q_proj")]
    parameters = [name for name, _ in model.named_parameters()]
    limits = [tuple(module.time_step_limit) for module in model.modules() if hasattr(module, "time_step_limit")]
    return {
        "time steps clamped in calls of several tokens only": any(limit != (0.0, float("inf")) for limit in limits),
        "mixture of experts": any(".experts." in name for name in parameters),
        "values from the key projection": any(getattr(a, "v_proj", a) is None for a in attentions),
        "query and key norms": any(hasattr(a, "q_norm") for a in attentions),
        "attention bias": any(getattr(a.q_proj, "bias", None) is not None for a in attentions),
        "attention sinks": any(name.endswith(".sinks") for name in parameters),
    }


def unproven(spec: ModelSpec, totals: Iterable[int] = ()) -> tuple[str, ...]:
    """What a verdict on a model says nothing about: features that it lacks, and the window where no case passes it.

    Args:
        spec: The model.
        totals: Tokens of each case that can be judged.
    """
    longest, window = max(totals, default=0), min(spec.windows, default=None)
    if spec.position_by_slot:
        beyond = f" beyond slot {spec.position_by_slot_from}" if spec.position_by_slot_from else ""
        padded = f"left-padded rows{beyond} (positions are counted by slot)"
        spec = replace(spec, not_exercised=(*spec.not_exercised, padded))
    if spec.single_steps:
        left_out = "several tokens after the first call (transformers starts from an empty state there; graphs go on)"
        spec = replace(spec, not_exercised=(*spec.not_exercised, left_out))
    switch = spec.rope_switch
    if switch is not None:
        beyond = f"any call beyond {switch} positions, where rotary frequencies change (longest case {longest})"
        if longest > switch:  # a reference is one row, and the longest row of a call decides for all of them
            beyond = f"rows on both sides of position {switch}, where rotary frequencies change, in one call"
        spec = replace(spec, not_exercised=(*spec.not_exercised, beyond))
    if window is None or longest > window:
        return spec.not_exercised
    return (*spec.not_exercised, f"anything beyond the window of {window} (longest case {longest})")


def coverage_lines(spec: ModelSpec, totals: Iterable[int] = ()) -> tuple[str, str]:
    """What a bundle's verdict proves, and what it does not, a sentence each.

    Args:
        spec: The model.
        totals: Tokens of each case that can be judged.
    """
    missing = unproven(spec, totals)
    proves = f"this bundle exercises: {', '.join(spec.features) or 'nothing of note'}"
    return proves, f"this bundle does not prove: {', '.join(missing) or 'nothing known is left out'}"
