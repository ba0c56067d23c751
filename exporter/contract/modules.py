"""Finds the parts of a transformers model by what they are, not by what a family calls them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from typing import Any

__all__ = ["accepted", "cache_argument", "decoder_stack", "named_parts", "ropes_by_length", "takes_own_mask"]


def decoder_stack(model: Any) -> tuple[Any, str, Any]:
    """(module that holds the decoder layers, its attribute, the list): the outermost list whose items have attention.

    Of several, such as XLM's lists of attentions and of feed-forward layers, the longest that has the most parameters.
    The attribute is empty where a model has no such list.
    """
    from torch import nn

    found: list[tuple[bool, int, int, Any, str, Any]] = []
    pending = [model]
    while pending:
        module = pending.pop(0)
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and len(child):
                indexed = any(_index(inner) is not None for item in child for inner in item.modules())
                size = sum(parameter.numel() for parameter in child.parameters())
                found.append((indexed, len(child), size, module, name, child))
            else:
                pending.append(child)
    if not found:
        return model, "", nn.ModuleList()
    best = max(found, key=lambda item: item[:3])
    return best[3:]


def _index(module: Any) -> int | None:
    """The layer of a module that writes to the cache."""
    found = getattr(module, "layer_idx", getattr(module, "layer_id", None))
    return found if isinstance(found, int) else None


def named_parts(model: Any) -> Iterator[tuple[str, Any]]:
    """(path, module) of everything beside and inside the decoder layers, which are called ``layers`` in every model."""
    base, attribute, _ = decoder_stack(model)
    for path, module in base.named_modules():
        first, dot, rest = path.partition(".")
        yield f"layers{dot}{rest}" if attribute and first == attribute else path, module


def accepted(model: Any) -> frozenset[str]:
    """Names of the arguments of a model's forward."""
    return frozenset(inspect.signature(model.forward).parameters)


def takes_own_mask(model: Any) -> bool:
    """Whether a model is to be given the mask of a call's own tokens: Mamba multiplies it into them as it is."""
    file = sys.modules[type(model).__module__]
    return hasattr(file, "apply_mask_to_padding_states") and not hasattr(file, "create_recurrent_attention_mask")


def cache_argument(model: Any) -> str:
    """What a model's forward calls its cache."""
    return "cache" if "cache" in accepted(model) else "past_key_values"


def ropes_by_length(model: Any) -> list[tuple[Any, str, str]]:
    """(module, layer type or an empty name, rope type) of rotary embeddings that transformers updates by length.

    ``dynamic_rope_update`` in its ``modeling_rope_utils.py`` does so for the types ``longrope`` and ``dynamic``.
    """
    found = []
    for module in model.modules():
        types = getattr(module, "rope_type", None)
        for layer_type, rope_type in (types if isinstance(types, dict) else {"": types}).items():
            if isinstance(rope_type, str) and (rope_type == "longrope" or "dynamic" in rope_type):
                found.append((module, layer_type, rope_type))
    return found
