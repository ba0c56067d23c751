"""Dynamic layout: caches grow; past and new rows are joined, and sliding slots keep the newest window - 1 + rewind."""

from __future__ import annotations

import torch
from torch import Tensor

from kvparity.exporter.contract.spec import LayerSpec, SlotSpec
from kvparity.exporter.model.layouts.base import LayoutCache, Pair, additive, by_batch

__all__ = ["Cache"]


class Cache(LayoutCache):
    """Rows of a slot are in order of slots, and the last of them is this call's last token."""

    def join(self, slot: SlotSpec, key: Tensor, value: Tensor) -> tuple[Pair, Pair]:
        """Past and new rows: (batch, kv_heads, past + sequence, head_dim)."""
        past = self.past(slot)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        key, value = self.named(slot, key, value)
        keep = None
        if slot.window is not None and self.options.bounded:
            keep = slot.window - 1 + self.options.rewind
        return (key, value), (_newest(key, keep), _newest(value, keep))

    def mask(self, layer: LayerSpec) -> Tensor:
        """(batch, 1, sequence, past + sequence); queries and keys are counted from the slot's first row."""
        attention_mask, queries = self.inputs["attention_mask"], self.inputs["input_ids"].shape[1]
        past = self.past(self.spec.slot_of(layer))
        rows = queries + (0 if past is None else past[0].shape[2])
        query = torch.arange(queries, device=attention_mask.device)[:, None] + (rows - queries)
        key = torch.arange(rows, device=attention_mask.device)[None, :]
        seen = key <= query
        total = attention_mask.shape[1]
        if layer.window is not None:
            seen = torch.logical_and(seen, self.near(layer, query, key, 0 if past is None else total - rows))
        live = (attention_mask if past is None else attention_mask[:, total - rows : total]) != 0
        return additive(torch.logical_and(by_batch(seen), live[:, None, :]), self.dtype)


def _newest(rows: Tensor, keep: int | None) -> Tensor:
    """The last ``keep`` rows; the start is clamped in the graph because engines disagree on negative starts."""
    if keep is None:
        return rows
    total = rows.shape[2]
    return rows[:, :, torch.sym_max(total - keep, 0) : total]
