"""Banded attention in ONNX: one shape of blocks for any prompt, no control flow."""

# No `from __future__ import annotations`: torch's exporter reads the signatures below.

from typing import Any, NamedTuple

import onnx_ir as ir
from onnxscript import opset23 as op

from kvparity.exporter.contract.spec import blocked_score

__all__ = ["band_mask", "banded_attention"]


class _Cut(NamedTuple):
    """Sizes of a call, each (1,) int64."""

    size: Any
    padded: Any
    before: Any
    front: Any
    tail: Any


def _ints(*values: int) -> Any:
    return op.Constant(value_ints=list(values))


def _size(value: Any, axis: int) -> Any:
    return op.Shape(value, start=axis, end=axis + 1)


def _cut(tokens: Any, rows: Any, window: int) -> _Cut:
    """As :func:`exporter.model.banded_attention._cut`."""
    one = _ints(1)
    size = op.Min(tokens, _ints(window))
    blocks = op.Div(op.Sub(op.Add(tokens, size), one), size)
    padded = op.Mul(blocks, size)
    before = op.Sub(rows, tokens)
    front = op.Mul(op.Min(op.Sub(blocks, one), one), op.Sub(_ints(window), before))
    return _Cut(size, padded, op.Add(before, front), front, op.Sub(padded, tokens))


def _joined(*parts: Any) -> Any:
    return op.Concat(*parts, axis=0)


def _first(value: Any, count: Any, axis: int) -> Any:
    return op.Slice(value, _ints(0), count, _ints(axis))


def band_mask(mask: Any, window: int) -> Any:
    """Diagonal blocks without a gather: rows as long as ``row + 1`` apart put each block at the start of its row.

    In the flat mask of rows of L columns, block b starts at b c (L + 1) where c is the block's size. So the flat mask
    is read as rows of c (L + 1) elements, of which the first c L are the block's c rows.
    """
    cut = _cut(_size(mask, 2), _size(mask, 3), window)
    nothing, one, rest = _ints(0), _ints(1), _ints(-1)
    far = op.Constant(value=ir.tensor(blocked_score(mask.dtype.name.lower()), dtype=mask.dtype))
    pads = _joined(nothing, nothing, nothing, cut.front, nothing, nothing, cut.tail, cut.tail)
    wide = op.Pad(mask, pads, far)
    length = op.Add(cut.before, cut.padded)
    flat = op.Reshape(wide, _joined(_size(mask, 0), rest))
    longer = op.Pad(flat, _joined(nothing, nothing, nothing, cut.padded), far)
    stride = op.Mul(cut.size, op.Add(length, one))
    blocks = _first(op.Reshape(longer, _joined(rest, stride)), op.Mul(cut.size, length), 1)
    rows = op.Reshape(blocks, _joined(rest, one, cut.size, length))
    return _first(rows, op.Add(cut.before, cut.size), 3)


def banded_attention(query: Any, key: Any, value: Any, band: Any, window: int, softcap: float) -> Any:
    """Heads stay joined, so that blocks are reshapes; each block is one entry of the batch of an Attention."""
    cut = _cut(_size(query, 2), _size(key, 2), window)
    nothing, blocks = _ints(0), _size(band, 0)

    def lined(wide: Any) -> Any:
        return op.Reshape(op.Transpose(wide, perm=[0, 2, 1, 3]), _ints(0, 0, -1))

    def padded(flat: Any, front: Any) -> Any:
        return op.Pad(flat, _joined(nothing, front, nothing, nothing, cut.tail, nothing))

    def seen(kept: Any) -> Any:
        rows = padded(lined(kept), cut.front)
        width = op.Shape(rows, start=2)
        lead = _first(rows, op.Mul(op.Div(cut.padded, cut.size), cut.before), 1)
        own = op.Slice(rows, cut.before, op.Add(cut.before, cut.padded), _ints(1))
        parts = (
            op.Reshape(lead, _joined(blocks, cut.before, width), allowzero=1),
            op.Reshape(own, _joined(blocks, cut.size, width)),
        )
        return op.Concat(*parts, axis=1)

    heads, kv_heads = query.shape[1], key.shape[1]
    queries = padded(lined(query), nothing)
    output = op.Attention(
        op.Reshape(queries, _joined(blocks, cut.size, op.Shape(queries, start=2))),
        seen(key),
        seen(value),
        band,
        scale=1.0,
        softcap=softcap,
        q_num_heads=heads,
        kv_num_heads=kv_heads,
    )[0]
    output.producer().resize_outputs(1)
    joined = op.Reshape(output, _joined(_size(query, 0), cut.padded, _ints(-1)))
    return op.Reshape(_first(joined, _size(query, 2), 1), _ints(0, 0, heads, -1))
