"""Grouped-query attention without repeated keys: the queries of a group become rows of one head.

The arithmetic stays the model's own eager attention; only its arguments are laid out differently, so that a key-value
head is multiplied once with all its queries. Repeating keys reads the cache ``groups`` times and copies it as often.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["can_group", "grouped_attention"]

_GROUPS = "num_key_value_groups"


def can_group(module: Any, query: Tensor, key: Tensor) -> bool:
    """Whether a layer shares keys among queries, and its eager attention knows no per-head extras (sinks)."""
    groups = getattr(module, _GROUPS, 1)
    return groups > 1 and not hasattr(module, "sinks") and query.shape[1] == groups * key.shape[1]


def grouped_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    *,
    eager: Callable[..., Any],
    by_token: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """Eager attention over (kv_heads, sequence x groups) instead of (heads, sequence).

    Args:
        module: The attention layer.
        query: (batch, heads, sequence, head_dim).
        key: (batch, kv_heads, rows, head_dim).
        value: (batch, kv_heads, rows, head_dim).
        mask: (batch, 1, sequence, rows), additive.
        eager: The model's own function.
        by_token: With one key-value head, lay the queries token by token, as projections leave them: fewer transposes,
            but the repeated mask has a size that is computed, which tract and OpenCV don't take.
        **kwargs: Passed on.

    Returns:
        (batch, sequence, heads, head_dim), and the weights in the grouped shape.
    """
    groups, kv_heads = getattr(module, _GROUPS), key.shape[1]
    batch, _, sequence, head_dim = query.shape
    by_token = by_token and kv_heads == 1
    if isinstance(sequence, int) and sequence == 1:  # one mask for all queries
        rows = query.reshape(batch, kv_heads, groups, head_dim)
    elif by_token:
        rows = query.transpose(1, 2).reshape(batch, 1, sequence * groups, head_dim)
        mask = mask[:, :, :, None].expand(-1, -1, -1, groups, -1).flatten(2, 3)
    else:  # query head by query head
        rows = query.reshape(batch, kv_heads, groups * sequence, head_dim)
        mask = torch.cat([mask] * groups, dim=2)
    setattr(module, _GROUPS, 1)
    try:
        output, weights = eager(module, rows, key, value, mask, **kwargs)
    finally:
        setattr(module, _GROUPS, groups)
    if by_token:
        return output.reshape(batch, sequence, groups, -1), weights
    return output.transpose(1, 2).reshape(batch, kv_heads * groups, sequence, -1).transpose(1, 2).contiguous(), weights
