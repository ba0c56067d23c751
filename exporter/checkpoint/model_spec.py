"""Reads a :class:`ModelSpec` from a transformers config: layer kinds, windows, cache slots, heads, features.

Which layers slide, and how far, is asked of transformers' own cache, so that it can't differ from the reference.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kvparity.exporter.checkpoint.cache_shapes import observe_cache
from kvparity.exporter.contract.errors import ExportError
from kvparity.exporter.contract.features import features_of
from kvparity.exporter.contract.modules import accepted, decoder_stack
from kvparity.exporter.contract.spec import LayerKind, LayerSpec, ModelSpec, SlotSpec, StateSpec
from kvparity.exporter.model.rope import rope_specs, rope_switch
from kvparity.exporter.model.states import RULES, modelling_files

__all__ = ["model_spec"]

_PLAIN_CACHES = {
    "DynamicLayer",
    "DynamicSlidingWindowLayer",
    "LinearAttentionLayer",
    "LinearAttentionAndFullAttentionLayer",
    "LinearAttentionAndSlidingWindowAttentionLayer",
}
_RECURRENT = {"linear_attention", "hybrid", "hybrid_sliding"}
_LAYER_TYPES = {"full_attention", "sliding_attention", "chunked_attention", "conv", "moe", "mlp", *_RECURRENT}


def model_spec(config: Any, model: Any, dtype: str) -> ModelSpec:
    """Describe a causal language model.

    Args:
        config: The text config.
        model: The model built from it; parameters may be on the meta device.
        dtype: dtype of the exported weights.

    Raises:
        ExportError: A layer keeps a state that is no key-value cache, or attends in both directions.
    """
    config = config.get_text_config(decoder=True)
    layers, slots = _layers_and_slots(config, model)
    features, missing = features_of(config, model, layers, slots)
    max_position, switch = _max_position(config), rope_switch(model)
    by_slot = _slots_as_positions(model, max_position)
    return ModelSpec(
        model_type=config.model_type,
        architecture=type(model).__name__,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        heads=int(getattr(config, "num_attention_heads", 0) or 0),
        layers=layers,
        slots=slots,
        max_position=max_position,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        dtype=dtype,
        tied_embeddings=model.get_output_embeddings().weight is model.get_input_embeddings().weight,
        bos_token_id=next(iter(_tokens(config, "bos_token_id")), None),
        eos_token_ids=_tokens(config, "eos_token_id"),
        pad_token_id=next(iter(_tokens(config, "pad_token_id")), None),
        features=features,
        not_exercised=missing,
        ropes=rope_specs(model, max_position),
        rope_switch=switch if switch is not None and switch < max_position else None,
        rope_restart=switch is not None and _drops_cache_at_switch(model),
        single_steps=_starts_anew(model),
        position_by_slot=by_slot is not None,
        position_by_slot_from=by_slot or 0,
    )


def _slots_as_positions(model: Any, max_position: int) -> int | None:
    """How many slots come before the first whose number, padding included, counts as its position; None for no such.

    A table of positions without ``position_ids`` does so from the first; attention that asks the cache for its length
    to scale queries (Llama 4's temperature) where the scale takes its first step.
    """
    if "position_ids" not in accepted(model) and _has_position_table(model, max_position):
        return 0
    asking = [
        module
        for module in model.modules()
        if "get_seq_length" in inspect.unwrap(type(module).forward).__code__.co_names
        and getattr(module, "attn_temperature_tuning", False)
        and not getattr(module, "use_rope", False)
    ]
    return min((int(module.floor_scale) - 1 for module in asking), default=None)


def _has_position_table(model: Any, max_position: int) -> bool:
    """Whether a model has a table of positions beside its embeddings; one with ALiBi, which is relative, has none."""
    from torch import nn

    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    words = model.get_input_embeddings()
    return any(table is not words and table.num_embeddings >= max_position for table in tables)


def _starts_anew(model: Any) -> bool:
    """Whether a recurrence of several tokens takes no state, and so starts from zeros wherever they are in a text."""
    rules = [getattr(file, name) for file in modelling_files(model) for name in RULES if hasattr(file, name)]
    return any(not {"initial_state", "initial_states"} & inspect.signature(rule).parameters.keys() for rule in rules)


def _max_position(config: Any) -> int:
    """Positions that a model has, by the names that configs use for them.

    Dynamic NTK scaling starts where ``max_position_embeddings`` ends, and is meant for ``factor`` times as many.
    """
    names = ("max_position_embeddings", "max_seq_len", "max_seq_length", "n_positions")
    found = next((value for name in names if (value := getattr(config, name, None))), 2048)
    ropes = getattr(config, "rope_parameters", None) or {}
    by_layer_type = [rope for rope in ropes.values() if isinstance(rope, dict)]
    dynamic = [rope for rope in by_layer_type or [ropes] if "dynamic" in str(rope.get("rope_type"))]
    return int(found * max([1.0, *(float(rope["factor"]) for rope in dynamic)]))


def _drops_cache_at_switch(model: Any) -> bool:
    """Whether the class prepares ``generate()`` for longrope: Phi-3's does, and those made after it."""
    prepare = inspect.unwrap(type(model).prepare_inputs_for_generation).__code__
    return "original_max_position_embeddings" in (*prepare.co_consts, *prepare.co_names)


def _tokens(config: Any, name: str) -> tuple[int, ...]:
    """Special tokens of a config; one outside the vocabulary, such as a pad token of -1, is no token."""
    found = getattr(config, name, None)
    ids = found if isinstance(found, list | tuple) else (found,)
    return tuple(token for token in ids if token is not None and 0 <= token < config.vocab_size)


def _layers_and_slots(config: Any, model: Any) -> tuple[tuple[LayerSpec, ...], tuple[SlotSpec, ...]]:
    _refuse_unsupported(config, model)
    windows = _windows(config)
    _refuse_stray_window(config, model, windows)
    sizes, states = _sizes(config, model, len(windows))
    types = getattr(config, "layer_types", None) or ["full_attention"] * len(windows)
    layers: list[LayerSpec] = []
    slots: list[SlotSpec] = []
    owner: dict[str, int] = {}
    for index, window in enumerate(windows):
        own, kept = sizes[index], states.get(index, ())
        if own is not None or kept:
            kind = _kind(own, window, kept, types[index])
            if types[index] == "conv" and kind != "conv":
                raise ExportError(
                    f"{config.model_type}: layer_types calls layer {index} a conv, and it keeps keys and values; "
                    "transformers itself fails on it; mend config.json"
                )
            slots.append(SlotSpec(len(slots), index, kind, window, *(own or (0, 0, 0)), states=kept))
            owner[types[index]] = len(slots) - 1
        elif types[index] not in owner:
            layers.append(LayerSpec(index, "none", None, None))
            continue
        slot = slots[owner[types[index]]]
        layers.append(LayerSpec(index, slot.kind, slot.window, slot.slot, owns_slot=slot.layer == index))
    if not any(slot.kv_heads for slot in slots) and hasattr(sys.modules[type(model).__module__], "create_causal_mask"):
        raise ExportError(
            f"{config.model_type}: no layer has attention, and transformers asks the cache of such a model for the "
            "rows of its keys: it fails on every call with a cache, so there is nothing to compare with"
        )
    readers = {s.slot: tuple(x.index for x in layers if x.slot == s.slot and not x.owns_slot) for s in slots}
    return tuple(layers), tuple(replace(slot, shared_by=readers[slot.slot]) for slot in slots)


def _kind(
    rows: tuple[int, int, int] | None, window: int | None, states: tuple[StateSpec, ...], layer_type: str
) -> LayerKind:
    """What a layer is by what it keeps; windows and chunks keep the same, and differ in their masks."""
    if rows is not None:
        return "full" if window is None else "chunked" if layer_type == "chunked_attention" else "sliding"
    return "conv" if all(state.part == "conv_state" for state in states) else "recurrent"


def _windows(config: Any) -> list[int | None]:
    """Window of every layer, None where it sees everything, as transformers' own cache has it.

    Raises:
        ExportError: A layer keeps a state that is no key-value cache, or has a window that holds no earlier token.
    """
    from transformers import DynamicCache

    try:
        kept = DynamicCache(config=config).layers
    except Exception as error:  # such as TypeError, for sliding layers without a window
        sliding = [i for i, kind in enumerate(getattr(config, "layer_types", None) or ()) if kind != "full_attention"]
        window = getattr(config, "sliding_window", None)
        lacks = f"it has no {error.name}" if isinstance(error, AttributeError) else str(error)
        reason = f"layer {sliding[0]} is {config.layer_types[sliding[0]]}" if sliding else lacks
        raise ExportError(
            f"{config.model_type}: transformers cannot make a cache for this config: {reason}, and "
            f"sliding_window is {window}; mend config.json"
        ) from error
    windows: list[int | None] = []
    for index in range(len(kept) or config.num_hidden_layers):
        layer = kept[index] if index < len(kept) else None
        kind = type(layer).__name__
        if kind == "DummyLayer":  # of a layer that shares another's rows
            windows.append(None)
            continue
        if layer is not None and kind not in _PLAIN_CACHES:
            raise ExportError(
                f"{config.model_type}: layer {index} keeps a {kind}, which is more than keys, values and known states"
            )
        window = int(layer.sliding_window) if layer is not None and getattr(layer, "is_sliding", False) else None
        if window is not None and window < 2:
            raise ExportError(
                f"{config.model_type}: sliding_window={window} in layer {index}: transformers itself fails at the "
                "second token, because its cache and its masks disagree; expected 2 or more, or null for full attention"
            )
        windows.append(window)
    return windows


def _refuse_stray_window(config: Any, model: Any, windows: list[int | None]) -> None:
    """A window that transformers' cache heeds and the model's masks do not, such as ``sliding_window`` of a Llama.

    transformers then gives other logits for one prefill than for the same tokens in chunks, so nothing is right.
    """
    window = next((window for window in windows if window is not None), None)
    masks = ("create_sliding_window_causal_mask", "create_chunked_causal_mask")
    if window is not None and not any(hasattr(sys.modules[type(model).__module__], name) for name in masks):
        raise ExportError(
            f"{config.model_type}: sliding_window={window} is in the config, but {type(model).__name__} has no sliding "
            "masks: transformers' cache drops rows that its masks still show, so results depend on how the tokens are "
            "cut into calls; remove sliding_window from config.json (set it to null) for full attention"
        )


def _refuse_unsupported(config: Any, model: Any) -> None:
    kinds, files = getattr(config, "layer_types", None) or (), modelling_files(model)
    known = any(hasattr(file, name) for file in files for name in RULES)
    for place, kind in enumerate(kinds):
        if kind in _RECURRENT and not known:
            raise ExportError(
                f"{config.model_type}: layer {place} ({kind!r}) computes its recurrence inside {_mixer(model, place)}, "
                f"where it cannot be replaced, and not by a function that is known ({', '.join(sorted(RULES))})"
            )
        if kind not in _LAYER_TYPES:
            raise ExportError(
                f"{config.model_type}: layer type {kind!r} is none of {', '.join(sorted(_LAYER_TYPES))}; "
                "it keeps another state, or a mask of its own"
            )
    if getattr(config, "use_bidirectional_attention", None) in ("all", True):
        raise ExportError(
            f"{config.model_type}: use_bidirectional_attention={config.use_bidirectional_attention!r} looks ahead; "
            "a causal cache can't serve it"
        )
    if getattr(config, "num_kv_shared_layers", 0) and getattr(config, "hidden_size_per_layer_input", None) == 0:
        raise ExportError(
            f"{config.model_type}: num_kv_shared_layers={config.num_kv_shared_layers} without per-layer inputs "
            "(hidden_size_per_layer_input=0) fails in transformers itself, so there is nothing to compare with"
        )
    causal: dict[int, bool] = {}  # a layer may attend to an encoder's tokens as well, which nobody gives here
    for module in model.modules():
        if isinstance(index := getattr(module, "layer_idx", None), int):
            looks_back = getattr(module, "is_causal", True) is not False or getattr(module, "is_decoder", False)
            causal[index] = causal.get(index, False) or looks_back
    if not all(causal.values()):
        raise ExportError(f"{config.model_type}: attends in both directions (is_decoder is false); not a decoder")
    if not accepted(model) & {"cache", "past_key_values"}:
        raise ExportError(
            f"{config.model_type}: {type(model).__name__} takes no key-value cache, so there is nothing that a decode "
            "graph could hand on"
        )


def _mixer(model: Any, index: int) -> str:
    """Class of the module that mixes the tokens of a layer: the first that is no norm."""
    names = [type(child).__name__ for child in decoder_stack(model)[2][index].children()]
    return next((name for name in names if "Norm" not in name), "its own code")


def _sizes(
    config: Any, model: Any, count: int
) -> tuple[list[tuple[int, int, int] | None], Mapping[int, tuple[StateSpec, ...]]]:
    """What each layer keeps: (kv_heads, head_dim, value_head_dim), None where it writes no keys, and states by layer.

    Read from the modules where they have a query and a key projection each, observed otherwise.
    """
    attentions = _attention_modules(model)
    if attentions.keys() >= set(range(count)) and not _RECURRENT & set(getattr(config, "layer_types", None) or ()):
        return [
            None if getattr(attentions[index], "is_kv_shared_layer", False) else _head_sizes(attentions[index])
            for index in range(count)
        ], {}
    seen = observe_cache(model)
    if not seen.rows and not seen.states:
        raise ExportError(f"{config.model_type}: no layer writes to its cache; not a decoder with caches")
    return [seen.rows.get(index) for index in range(count)], seen.states


def _attention_modules(model: Any) -> dict[int, Any]:
    """Attention module of each layer that has plain projections: a layer index, queries, and keys or shared keys."""
    found: dict[int, Any] = {}
    for module in model.modules():
        index = getattr(module, "layer_idx", None)
        if not isinstance(index, int) or not hasattr(module, "q_proj") or not hasattr(module, "head_dim"):
            continue
        if hasattr(module, "k_proj") or getattr(module, "is_kv_shared_layer", False):
            found.setdefault(index, module)
    return found


def _head_sizes(attention: Any) -> tuple[int, int, int]:
    """(kv_heads, head_dim, value_head_dim) of an attention module with a key projection."""
    head_dim = int(attention.head_dim)
    kv_heads = attention.k_proj.weight.shape[0] // head_dim
    values = getattr(attention, "v_proj", None)  # None where values are the keys
    return kv_heads, head_dim, head_dim if values is None else values.weight.shape[0] // kv_heads
