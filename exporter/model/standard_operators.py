"""ONNX's operators for language models as torch operators, so that a trace keeps them whole (``modern``, ``ort``).

Each computes what its ONNX namesake does; :mod:`exporter.trace.onnx_translations` translates one to the other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["attend", "attention", "is_standard", "scaled_query", "tensor_scatter"]

# What transformers passes to every attention function, and what none of them reads when a mask is given.
_IGNORED = {
    "dropout",
    "sliding_window",
    "is_causal",
    "position_ids",
    "output_attentions",
    "use_cache",
    "cache_position",
    "logits_to_keep",
}


@torch.library.custom_op("kvparity::attention", mutates_args=())
def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, softcap: float) -> Tensor:
    """Softmax(cap(Q K^T) + mask) V with scale 1; query (batch, heads, sequence, head_dim), fewer key-value heads."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(-1, -2)
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    return torch.softmax(scores + mask, -1) @ value


@attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, softcap: float) -> Tensor:
    for rows in (value.shape[2], mask.shape[3]):  # lets a trace give one name to the lengths of all caches of a kind
        torch._check(key.shape[2] == rows)
    return query.new_empty((*query.shape[:3], value.shape[3]))


@torch.library.custom_op("kvparity::tensor_scatter", mutates_args=())
def tensor_scatter(cache: Tensor, update: Tensor, write_indices: Tensor, circular: bool) -> Tensor:
    """Write ``update`` (batch, heads, tokens, head_dim) into a copy of the cache, from row ``write_indices[b]`` on."""
    written = cache.clone()
    for row in range(cache.shape[0]):
        rows = torch.arange(update.shape[2]) + write_indices[row]
        written[row, :, rows % cache.shape[2] if circular else rows] = update[row]
    return written


@tensor_scatter.register_fake
def _(cache: Tensor, update: Tensor, write_indices: Tensor, circular: bool) -> Tensor:
    return torch.empty_like(cache)


def is_standard(arguments: dict[str, Any]) -> bool:
    """Whether an attention function was asked for nothing that the Attention operator does not have, such as sinks."""
    known = _IGNORED | {"scaling", "softcap"}
    return all(name in known or value is None for name, value in arguments.items())


def scaled_query(query: Tensor, arguments: dict[str, Any]) -> Tensor:
    """The query times the scale that an attention function of transformers was asked for."""
    scale = arguments.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return query if scale == 1 else query * scale


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **arguments: Any) -> Tensor:
    """An attention function of transformers on the Attention operator: (batch, sequence, heads, head_dim).

    The scale multiplies the query, because the operator's attribute is float32 and would round it. A mask of one row
    is laid out for every query: the operator wants as many rows as queries.
    """
    rows = query.shape[2]
    if mask.shape[2] == 1 and isinstance(rows, int) and rows > 1:
        mask = mask.expand(-1, -1, rows, -1)
    return (
        attention(scaled_query(query, arguments), key, value, mask, float(arguments.get("softcap") or 0.0))
        .transpose(1, 2)
        .contiguous()
    )
