"""Static layout: buffers of fixed size that a call reads and writes at ``cache_position``; no dynamic dimension.

Full slots keep slot ``s`` in row ``s``; sliding slots are rings of window + rewind rows, with slot ``s`` in row ``s``
modulo that. Rows are written with Where and Gather, because engines get scatters wrong (MNN's ScatterElements is off by
0.94), and with TensorScatter in the modern profile. A row that this call must not read may hold anything, NaN too: it
is replaced by zeros before arithmetic, because NaN times a masked 0 is NaN.

Layers see the rows of a ring in the order of their slots, from the oldest that the call's first token sees, as growing
caches hold them. A sum of float32 depends on the order of its terms, so this makes both layouts give the same bits for
the same calls (docs/bundle.md); in the ring's own order they differ by rounding, 1.4e-5 on logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kvparity.exporter.contract.spec import ExportOptions, LayerSpec, ModelSpec, SlotSpec
from kvparity.exporter.model.layouts.base import LayoutCache, Pair, additive, by_batch
from kvparity.exporter.model.standard_operators import tensor_scatter

__all__ = ["Cache", "held_slots"]


def held_slots(capacity: int, newest: Tensor) -> Tensor:
    """Slot that each ring row holds once ``newest`` was written: (capacity,) int64, negative where none was.

    The newest slot of its residue class; ``+ capacity`` keeps the dividend positive, since engines differ below 0.
    """
    row = torch.arange(capacity, device=newest.device)
    return newest - torch.remainder(newest + capacity - row, capacity)


@dataclass(frozen=True)
class _Rows:
    """What one kind of buffer does in one call; every tensor is (capacity,) but ``keys``.

    Attributes:
        old: Rows whose content before the call may be read, by this one or after going back.
        written: Rows that the call writes.
        source: Which of the call's tokens each written row takes.
        keys: Slot of every row that a layer sees, (rows,); negative where there is none.
        order: Where layers find those rows: in the old buffer followed by the call's rows if there are several, in the
            written buffer if there is one; None where they see the written buffer as it is.
    """

    old: Tensor
    written: Tensor
    source: Tensor
    keys: Tensor
    order: Tensor | None


class Cache(LayoutCache):
    """Buffers and rings; ``cache_position`` is (chunk,) int64, consecutive slots, then -1 on the padded tail."""

    def __init__(
        self, spec: ModelSpec, options: ExportOptions, inputs: Mapping[str, Tensor], dtype: torch.dtype
    ) -> None:
        super().__init__(spec, options, inputs, dtype)
        self._position = inputs["cache_position"]
        self._first = self._position[0]
        # One element, not a scalar: OpenCV 5 gives ReduceMax of a vector one dimension whatever keepdims says.
        self._last = self._first if self._position.shape[0] == 1 else self._position.amax(0, keepdim=True)
        self._made: dict[tuple[int, int | None], _Rows] = {}

    @property
    def keep_logits(self) -> int | Tensor:
        """The last token that is no padding."""
        return (self._last - self._first).reshape(1) if self.options.logits == "last" else 0

    def tokens_before(self) -> Tensor:
        """The slot of the call's first token."""
        return self._first

    def join(self, slot: SlotSpec, key: Tensor, value: Tensor) -> tuple[Pair, Pair]:
        """Read and write one slot's buffers; (batch, kv_heads, capacity, head_dim) is handed out."""
        past = self.past(slot)
        assert past is not None
        rows = self._rows(slot)
        pairs = zip(past, (key, value), strict=True)
        seen, present = zip(*(self._write(rows, old, new) for old, new in pairs), strict=True)
        return self.named(slot, *seen), present

    def mask(self, layer: LayerSpec) -> Tensor:
        """(batch, 1, chunk, rows); a padded query sees nothing."""
        rows, attention_mask = self._rows(self.spec.slot_of(layer)), self.inputs["attention_mask"]
        query, key = self._position[:, None], rows.keys[None, :]
        seen = torch.logical_and(key <= query, key >= 0)
        if layer.window is not None:
            seen = torch.logical_and(seen, self.near(layer, query, key))
        live = attention_mask.index_select(1, _at_least_0(rows.keys)) != 0
        return additive(torch.logical_and(by_batch(seen), live[:, None, :]), self.dtype)

    def newest(self, joined: Tensor, columns: int) -> Tensor:
        """The columns up to the call's last token, which padding may follow."""
        if self._position.shape[0] == 1:
            return joined[:, :, 1:]
        count = (self._last - self._first).reshape(1) + 1
        return joined.index_select(2, count + torch.arange(columns, device=joined.device))

    def live(self) -> Tensor:
        """Looked up by slot; tokens beyond the call's end are padding too."""
        live = self.inputs["attention_mask"].index_select(1, _at_least_0(self._position))
        real = self.real()
        return live if real is None else live * real.to(live.dtype)[None]

    def real(self) -> Tensor | None:
        """All of one token are."""
        return None if self._position.shape[0] == 1 else self._position >= 0

    def follows(self) -> Tensor:
        """Slot 0 has the first token."""
        return self._first > 0 if self._position.shape[0] == 1 else torch.zeros((), dtype=torch.bool)

    def _rows(self, slot: SlotSpec) -> _Rows:
        capacity = self.options.capacity(slot)
        ring = slot.window if self.options.ring(slot) else None
        if (capacity, ring) not in self._made:
            self._made[capacity, ring] = self._full(capacity) if ring is None else self._ring(capacity, ring)
        return self._made[capacity, ring]

    def _full(self, capacity: int) -> _Rows:
        row = torch.arange(capacity, device=self._position.device)
        written = torch.logical_and(row >= self._first, row <= self._last)
        return _Rows(row < self._first, written, self._token(row), row, order=None)

    def _ring(self, capacity: int, window: int) -> _Rows:
        """One token overwrites the one row that it can't see; more would overwrite rows that the first still sees."""
        before, after = held_slots(capacity, self._first - 1), held_slots(capacity, self._last)
        old = torch.logical_and(before >= 0, before > self._first - (window + self.options.rewind))
        tokens = self._position.shape[0]
        oldest = _at_least_0(self._first - (window - 1))
        slots = oldest + torch.arange(window - 1 + tokens, device=self._position.device)
        order = torch.remainder(slots, capacity)
        if tokens > 1:
            order = torch.where(slots < self._first, order, capacity + self._token(slots))
        keys = torch.where(slots <= self._last, slots, -1)
        return _Rows(old, after >= self._first, self._token(after), keys, order)

    def _token(self, slots: Tensor) -> Tensor:
        last = torch.full((), self._position.shape[0] - 1, dtype=slots.dtype)
        return torch.minimum(_at_least_0(slots - self._first), last)

    def _write(self, rows: _Rows, old: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        """(rows that layers see, buffer after the call)."""
        clean = torch.where(rows.old[None, None, :, None], old, torch.zeros((), dtype=old.dtype))
        if self.options.profile == "modern" and new.shape[2] <= old.shape[2]:
            present = self._scatter(clean, new)
        else:
            taken = new if new.shape[2] == 1 else new.index_select(2, rows.source)
            present = torch.where(rows.written[None, None, :, None], taken, clean)
        if rows.order is None:
            return present, present
        joined = torch.cat([clean, new], dim=2) if new.shape[2] > 1 else present
        return joined.index_select(2, rows.order), present

    def _scatter(self, clean: Tensor, new: Tensor) -> Tensor:
        """The buffer after TensorScatter wrote the call's rows; a padded tail is written with what was there."""
        tokens, capacity = new.shape[2], clean.shape[2]
        first = torch.remainder(self._first, capacity)
        if tokens > 1:
            row = torch.remainder(first + torch.arange(tokens, device=new.device), capacity)
            valid = self._position >= 0
            new = torch.where(valid[None, None, :, None], new, clean.index_select(2, row))
        return tensor_scatter(clean, new, first.expand(clean.shape[0]), True)


def _at_least_0(values: Tensor) -> Tensor:
    """Max and Min instead of Clip, which OpenCV 5 does not have for integers."""
    return torch.maximum(values, torch.zeros((), dtype=values.dtype))
