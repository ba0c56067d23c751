"""Shared layout: buffers that a call writes in place, because past and present are bound to the same memory.

Full slots keep slot ``s`` in row ``s`` of a buffer with as many rows as the host likes (``capacity``, at least the
tokens so far and at least every ring); sliding slots are rings of window + rewind rows, with slot ``s`` in row ``s``
modulo that. TensorScatter writes only the new rows when its input and its output are one buffer, as ONNX Runtime lets a
host bind them; an engine that hands out another buffer gives the same numbers.

decode.onnx takes one token: it overwrites the one ring row that the token can't see, and then reads the ring as it is.
prefill.onnx takes any number, past or none; its rings are read before they are written, and the write takes its rows
from the value that the reading made, so that no engine can turn the two around. Rows that nobody wrote are masked, not
cleaned: they must hold finite numbers, and a host makes them zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kvparity.exporter.contract.errors import ExportError
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
        ring = self.options.ring(slot) is not None
        if self._one and (ring or layer.window is None):
            return self._blocked(self._held_now(layer) if ring else self.inputs["attention_mask"])[:, None, None]
        query = self._lengths[:, None] + torch.arange(self._tokens, device=self._lengths.device)
        live, key = self._held_before(slot, query) if ring else self._all_rows()
        seen = torch.logical_and(live[:, None, :] != 0, key[:, None, :] <= query[:, :, None])
        if layer.window is not None:
            seen = torch.logical_and(seen, self.near(layer, query[:, :, None], key[:, None, :]))
        return self._blocked(seen)[:, None]

    def _blocked(self, seen: Tensor) -> Tensor:
        """0 where a query may look, far below 0 elsewhere."""
        far = torch.full((), blocked(self.dtype), dtype=self.dtype)
        return torch.where(seen == 0, far, torch.zeros((), dtype=self.dtype))

    def _all_rows(self) -> tuple[Tensor, Tensor]:
        live = self.inputs["attention_mask"]
        return live, torch.arange(live.shape[1], device=live.device)[None]

    def tokens_before(self) -> Any:
        """None that all rows of a batch share."""
        raise ExportError(
            f"{self.spec.model_type} counts positions by slot, the same for all rows of a batch, and --layout shared "
            "has a length for each row; use --layout dynamic or static"
        )

    def _held_now(self, layer: LayerSpec) -> Tensor:
        """Which ring rows hold a live token once this call's one token is written: (batch, ring).

        A row that holds none yet reads the column of its own number, a slot after this call's, where nothing is live:
        the mask has at least as many columns as a ring has rows.
        """
        slot, newest = self.spec.slot_of(layer), self._lengths[:, None]
        held = self._held(slot, newest)
        live = self.inputs["attention_mask"].gather(1, torch.maximum(held, self._ring_rows(slot, held)))
        if not self.options.rewind and layer.kind == "sliding":  # the token overwrote the one row that it can't see
            return live
        near = self.near(layer, newest[:, :, None], held[:, None, :])[:, 0]
        return torch.where(near, live, torch.zeros((), dtype=live.dtype))

    def _held_before(self, slot: SlotSpec, query: Tensor) -> tuple[Tensor, Tensor]:
        """(live, slot) of the ring's rows before the call, then of the call's tokens: (batch, ring + sequence)."""
        attention_mask = self.inputs["attention_mask"]
        held = self._held(slot, self._lengths[:, None] - 1)
        none = torch.zeros((), dtype=held.dtype)
        keys = torch.cat([held, query], dim=1)
        live = attention_mask.gather(1, torch.maximum(keys, none))
        return torch.where(keys < 0, none, live), keys

    def _write(self, slot: SlotSpec, old: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        """(rows that layers see, buffer after the call)."""
        place, skipped = self._place(slot)
        if self.options.ring(slot) is None:
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
        ring = self.options.ring(slot)
        if ring not in self._places:
            skipped = 0 if ring is None or self._one else torch.sym_max(self._tokens - ring, 0)
            first = self._lengths if ring is None else torch.remainder(self._lengths + skipped, ring)
            self._places[ring] = first, skipped
        return self._places[ring]

    def _held(self, slot: SlotSpec, newest: Tensor) -> Tensor:
        """Slot that each ring row holds once ``newest`` (batch, 1) was written: (batch, ring), negative for none.

        The newest slot of its residue class; ``+ ring`` keeps the dividend positive, since engines differ below 0.
        """
        ring = self.options.ring(slot)
        assert ring is not None
        return newest - torch.remainder(newest + (ring - self._ring_rows(slot, newest)), ring)

    def _ring_rows(self, slot: SlotSpec, like: Tensor) -> Tensor:
        return torch.arange(self.options.ring(slot) or 0, device=like.device)
