"""Sliding attention over many tokens without the part of the score matrix that the window hides.

Queries are cut into blocks of as many tokens as the window; a block sees its own keys and the block before, so scores
take 2 x window columns instead of one per token: work and memory grow with the prompt, not with its square (the
blocked local attention of Longformer, Beltagy et al. 2020, section 3.2, with exact masks instead of fixed borders).

Both operators are torch operators, so that a trace keeps them whole; :mod:`exporter.trace.onnx_banded_attention`
writes them in ONNX.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kvparity.exporter.model.layouts.base import blocked
from kvparity.exporter.model.standard_operators import attention, scaled_query

__all__ = ["attend_banded", "band_mask", "banded_attention"]


def _cut(tokens: Any, rows: Any, window: int) -> tuple[Any, Any, Any, Any]:
    """(tokens of a block, blocks, rows that a block sees before its own, rows to add in front) for a call.

    One block sees every row that is there; several see ``window`` rows before their own.
    """
    size = torch.sym_min(tokens, window)
    blocks = (tokens + size - 1) // size
    before = rows - tokens
    front = torch.sym_max(torch.sym_min(blocks - 1, 1) * (window - before), 0)
    return size, blocks, before + front, front


@torch.library.custom_op("kvparity::band_mask", mutates_args=())
def band_mask(mask: Tensor, window: int) -> Tensor:
    """The blocks of a mask (batch, 1, sequence, rows): (batch x blocks, 1, block, rows before + block).

    The last ``sequence`` rows are the call's own; there are at most ``window`` before them.
    """
    batch, _, tokens, rows = mask.shape
    size, blocks, before, front = _cut(tokens, rows, window)
    tail = blocks * size - tokens
    wide = functional.pad(mask[:, 0], (front, tail, 0, tail), value=blocked(mask.dtype))
    parts = [wide[:, at * size : at * size + size, at * size : at * size + before + size] for at in range(blocks)]
    return torch.stack(parts, 1).reshape(batch * blocks, 1, size, before + size)


@band_mask.register_fake
def _(mask: Tensor, window: int) -> Tensor:
    batch, _, tokens, rows = mask.shape
    if isinstance(tokens, int) and isinstance(rows, int):
        size, blocks, before, _ = _cut(tokens, rows, window)
        return mask.new_empty((batch * blocks, 1, size, before + size))
    blocks, size, seen = (torch.library.get_ctx().new_dynamic_size() for _ in range(3))
    return mask.new_empty((blocks, 1, size, seen))  # nothing but banded_attention reads it, and asks for no size


@torch.library.custom_op("kvparity::banded_attention", mutates_args=())
def banded_attention(query: Tensor, key: Tensor, value: Tensor, band: Tensor, window: int, softcap: float) -> Tensor:
    """Softmax(cap(Q K^T) + mask) V with scale 1, block by block.

    Args:
        query: (batch, heads, sequence, head_dim).
        key: (batch, kv_heads, rows, head_dim); the last ``sequence`` rows are the call's own.
        value: As key.
        band: What :func:`band_mask` gives.
        window: Tokens that a query sees, itself included.
        softcap: 0 for none.

    Returns:
        (batch, sequence, heads, head_dim).
    """
    (batch, _, tokens, _), rows = query.shape, key.shape[2]
    size, blocks, before, front = _cut(tokens, rows, window)
    tail = blocks * size - tokens
    queries = functional.pad(query, (0, 0, 0, tail)).unflatten(2, (blocks, size)).transpose(1, 2).flatten(0, 1)

    def seen(kept: Tensor) -> Tensor:
        padded = functional.pad(kept, (0, 0, front, tail))
        parts = [padded[:, :, at * size : at * size + before + size] for at in range(blocks)]
        return torch.stack(parts, 1).flatten(0, 1)

    output = attention(queries, seen(key), seen(value), band, softcap)
    return output.transpose(1, 2).reshape(batch, blocks * size, query.shape[1], -1)[:, :tokens].contiguous()


@banded_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, band: Tensor, window: int, softcap: float) -> Tensor:
    torch._check(key.shape[2] == value.shape[2])
    batch, heads, tokens, _ = query.shape
    return query.new_empty((batch, tokens, heads, value.shape[3]))


def attend_banded(query: Tensor, key: Tensor, value: Tensor, band: Tensor, window: int, **arguments: Any) -> Tensor:
    """``standard_operators.attend`` with the blocks of a mask: (batch, sequence, heads, head_dim)."""
    softcap = float(arguments.get("softcap") or 0.0)
    return banded_attention(scaled_query(query, arguments), key, value, band, window, softcap)
