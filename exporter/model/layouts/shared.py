"""Shared layout: buffers that a call writes in place, because past and present are bound to the same memory.

Full slots keep slot ``s`` in row ``s`` of a buffer with as many rows as the host likes (``capacity``, at least the
tokens so far and at least every window); sliding slots are rings that keep it in row ``s mod window``. TensorScatter
writes only the new rows when its input and its output are one buffer, as ONNX Runtime lets a host bind them; an engine
that hands out another buffer gives the same numbers.

decode.onnx takes one token: it overwrites the one ring row that the token can't see, and then reads the ring as it is.
prefill.onnx takes any number, past or none; its rings are read before they are written, and the write takes its rows
from the value that the reading made, so that no engine can turn the two around. Rows that nobody wrote are masked, not
cleaned: they must hold finite numbers, and a host makes them zeros.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kvparity.exporter.contract.spec import ExportOptions, LayerSpec, ModelSpec, SlotSpec
from kvparity.exporter.model.layouts.base import LayoutCache, Pair, blocked
from kvparity.exporter.model.standard_operators import tensor_scatter

__all__ = ["Cache"]


class Cache(LayoutCache):
    """``past_lengths`` is (batch,) int64: the rows of each text before this call, padding counted."""

    def __init__(
        self, spec: ModelSpec, options: ExportOptions, inputs: Mapping[str, Tensor], dtype: torch.dtype
    ) -> None:
        super().__init__(spec, options, inputs, dtype)
        self._lengths, self._tokens = inputs["past_lengths"], inputs["input_ids"].shape[1]
        self._one = isinstance(self._tokens, int) and self._tokens == 1
        self._places: dict[int | None, tuple[Tensor, int | torch.SymInt]] = {}

    def join(self, slot: SlotSpec, key: Tensor, value: Tensor) -> tuple[Pair, Pair]:
        """Write the new rows; what layers see is the written buffer, or a ring as it was and the new rows."""
        past = self.past(slot)
        assert past is not None
        written = [self._write(slot, old, new) for old, new in zip(past, (key, value), strict=True)]
        (key, new_key), (value, new_value) = written
        return self.named(slot, key, value), (new_key, new_value)

    def mask(self, layer: LayerSpec) -> Tensor:
        """(batch, 1, sequence, rows); a row that is not yet written is 0 in ``attention_mask``."""
        slot = self.spec.slot_of(layer)
        ring = self.options.is_ring(slot)
        if self._one and (ring or layer.window is None):
            return self._blocked(self._held_now(slot) if ring else self.inputs["attention_mask"])[:, None, None]
        query = self._lengths[:, None] + torch.arange(self._tokens, device=self._lengths.device)
        live, key = self._held_before(slot, query) if ring else self._all_rows()
        seen = torch.logical_and(live[:, None, :] != 0, key[:, None, :] <= query[:, :, None])
        if layer.window is not None:
            seen = torch.logical_and(seen, query[:, :, None] - key[:, None, :] < layer.window)
        return self._blocked(seen)[:, None]

    def _blocked(self, seen: Tensor) -> Tensor:
        """0 where a query may look, far below 0 elsewhere."""
        far = torch.full((), blocked(self.dtype), dtype=self.dtype)
        return torch.where(seen == 0, far, torch.zeros((), dtype=self.dtype))

    def _all_rows(self) -> tuple[Tensor, Tensor]:
        live = self.inputs["attention_mask"]
        return live, torch.arange(live.shape[1], device=live.device)[None]

    def _held_now(self, slot: SlotSpec) -> Tensor:
        """Which ring rows hold a live token once this call's one token is written: (batch, window).

        A row that holds none yet reads the column of its own number, a slot after this call's, where nothing is live:
        the mask has at least ``window`` columns.
        """
        held = _held(slot, self._lengths[:, None])
        return self.inputs["attention_mask"].gather(1, torch.maximum(held, _ring_rows(slot, held)))

    def _held_before(self, slot: SlotSpec, query: Tensor) -> tuple[Tensor, Tensor]:
        """(live, slot) of the ring's rows before the call, then of the call's tokens: (batch, window + sequence)."""
        attention_mask = self.inputs["attention_mask"]
        held = _held(slot, self._lengths[:, None] - 1)
        none = torch.zeros((), dtype=held.dtype)
        keys = torch.cat([held, query], dim=1)
        live = attention_mask.gather(1, torch.maximum(keys, none))
        return torch.where(keys < 0, none, live), keys

    def _write(self, slot: SlotSpec, old: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        """(rows that layers see, buffer after the call)."""
        place, skipped = self._place(slot)
        if not self.options.is_ring(slot):
            written = tensor_scatter(old, new, place, False)
            return written, written
        if self._one:
            written = tensor_scatter(old, new, place, True)
            return written, written
        joined = torch.cat([old, new], dim=2)
        newest = joined[:, :, old.shape[2] + skipped : joined.shape[2]]
        return joined, tensor_scatter(old, newest, place, True)

    def _place(self, slot: SlotSpec) -> tuple[Tensor, int | torch.SymInt]:
        """(row that the first kept token goes to, tokens that are too old to be kept), computed once per kind."""
        window = slot.window if self.options.is_ring(slot) else None
        if window not in self._places:
            skipped = 0 if window is None or self._one else torch.sym_max(self._tokens - window, 0)
            first = self._lengths if window is None else torch.remainder(self._lengths + skipped, window)
            self._places[window] = first, skipped
        return self._places[window]


def _held(slot: SlotSpec, newest: Tensor) -> Tensor:
    """Slot that each ring row holds once ``newest`` (batch, 1) was written: (batch, window), negative for none.

    The newest slot of its residue class; ``+ window`` keeps the dividend positive, since engines differ below 0.
    """
    assert slot.window is not None
    return newest - torch.remainder(newest + (slot.window - _ring_rows(slot, newest)), slot.window)


def _ring_rows(slot: SlotSpec, like: Tensor) -> Tensor:
    assert slot.window is not None
    return torch.arange(slot.window, device=like.device)
