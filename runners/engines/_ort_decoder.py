"""ONNX Runtime for one conversation: one session, buffers bound, nothing copied between steps.

decode.onnx takes an empty past and any number of tokens, so it serves prompt and steps alike: one copy of the weights
in memory and half the loading time. Caches alternate between two sets of buffers of the final size; a step binds views
of them, so ONNX Runtime allocates nothing, and slots whose size no longer changes are bound once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.dtypes import numpy_dtype
from kvparity.exporter.contract.errors import TraceError
from kvparity.exporter.contract.spec import DECODE, ExportOptions, SlotSpec, part_dtype, past_name, present_name
from kvparity.runners.engines.ort import open_session

__all__ = ["OrtDecoder"]

_ONNX_TYPES = {"bfloat16": 16}  # TensorProto.BFLOAT16; numpy itself has no such dtype


@dataclass
class _Rows:
    """One cache tensor: its two buffers take turns at being read and written.

    Attributes:
        past: Input name.
        present: Output name.
        slot: The cache slot.
        part: Part of it.
        dtype: Of its numbers.
        limit: Rows that it stops growing at, 0 for a state, or None.
        rows: Rows that it holds.
        buffers: Memory, large enough for the longest text so far.
        addresses: Where each buffer starts.
    """

    past: str
    present: str
    slot: SlotSpec
    part: str
    dtype: np.dtype[Any]
    limit: int | None
    rows: int = 0
    buffers: list[npt.NDArray[Any]] = field(default_factory=list)
    addresses: list[int] = field(default_factory=list)

    def after(self, tokens: int) -> int:
        """Rows that it holds once more tokens were seen."""
        return self.rows + tokens if self.limit is None else min(self.rows + tokens, self.limit)

    def shape(self, rows: int) -> tuple[int, ...]:
        """Shape with as many rows."""
        return self.slot.shape(self.part, 1, rows)

    @property
    def kind(self) -> Any:
        """What ONNX Runtime calls its dtype."""
        return _ONNX_TYPES.get(self.dtype.name, self.dtype)

    def clear(self) -> None:
        """Back to what an empty conversation holds: states are zeros, rows are not looked at."""
        self.rows = 0
        for buffer in self.buffers if self.limit == 0 else ():
            buffer[:] = 0

    def crop(self, turn: int, count: int) -> None:
        """Drop the newest rows of one buffer."""
        shape = self.shape(self.rows)
        rows = self.buffers[turn][: int(np.prod(shape))].reshape(shape)[:, :, : self.rows - count]
        if self.slot.kv_heads > 1:  # the rows of one head follow those of another
            self.buffers[turn][: rows.size] = rows.ravel()
        self.rows -= count

    def grow(self, total: int) -> None:
        """Room for ``total`` tokens; what is cached moves along."""
        old = self.buffers
        size = int(np.prod(self.shape(total if self.limit is None else min(total, self.limit))))
        self.buffers = [np.zeros(size, self.dtype) for _ in range(2)]
        for new, previous in zip(self.buffers, old, strict=False):
            new[: previous.size] = previous
        self.addresses = [buffer.ctypes.data for buffer in self.buffers]


def _limit(slot: SlotSpec, part: str, options: ExportOptions) -> int | None:
    """Rows that a part stops growing at: 0 for a state, None where it always grows."""
    if part not in ("key", "value"):
        return 0
    return slot.window - 1 + options.rewind if slot.window is not None and options.bounded else None


class OrtDecoder:
    """See :class:`runners.decode.decoders.Decoder`; dynamic layout, batch of one."""

    def __init__(self, bundle: Bundle, options: Mapping[str, str]) -> None:
        self._session = open_session(bundle, options).native(DECODE)
        self._model, self._options = bundle.model, bundle.options
        self._capacity, self._vocab = bundle.model.max_position, bundle.model.vocab_size
        self._all = bundle.options.logits == "all"
        rows = [
            _Rows(
                past_name(slot.slot, part),
                present_name(slot.slot, part),
                slot,
                part,
                numpy_dtype(part_dtype(part, bundle.options.dtype)),
                _limit(slot, part, bundle.options),
            )
            for slot, part in bundle.model.cache_names()
        ]
        self._growing = [item for item in rows if item.limit is None]
        self._bounded = [item for item in rows if item.limit is not None]
        self._bindings = [self._session.io_binding(), self._session.io_binding()]
        self._settled = [False, False]  # per turn: bounded rows, tokens and logits are bound and stay so
        self._mask, self._mask_at = np.ones((1, 0), np.int64), 0
        self._ids = self._positions = np.zeros((1, 0), np.int64)
        self._logits = np.zeros(0, np.float32)
        self._total = self._turn = self._peak = 0
        self._before: tuple[int, int, list[int]] = (0, 0, [])

    def reset(self) -> None:
        """Forget the conversation; buffers stay."""
        self._total, self._peak, self._settled = 0, 0, [False, False]
        for item in (*self._growing, *self._bounded):
            item.clear()

    def feed(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Append tokens; see :class:`runners.decode.decoders.Decoder`.

        Raises:
            TraceError: The conversation would pass the model's last position.
        """
        return self.feed_all(ids)[-1]

    def feed_all(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Append tokens; see :class:`runners.decode.decoders.Decoder`.

        Raises:
            TraceError: The conversation would pass the model's last position.
        """
        start, total, turn = self._total, self._total + len(ids), self._turn
        if total > self._capacity:
            raise TraceError(f"{total} tokens, but the model has {self._capacity} positions")
        self._make_room(total, len(ids))
        self._ids[0] = ids
        self._positions[0] = range(start, total)
        binding = self._bindings[turn]
        binding.bind_input("attention_mask", "cpu", 0, np.int64, (1, total), self._mask_at)
        self._before = start, self._peak, [item.rows for item in (*self._growing, *self._bounded)]
        full = all(item.rows == item.limit for item in self._bounded)
        self._bind(binding, self._growing, len(ids))
        if not self._settled[turn]:
            self._bind(binding, self._bounded, len(ids))
            for name, array in (("input_ids", self._ids), ("position_ids", self._positions)):
                binding.bind_input(name, "cpu", 0, np.int64, array.shape, array.ctypes.data)
            shape = (1, self._logits.size // self._vocab, self._vocab)
            binding.bind_output("logits", "cpu", 0, np.float32, shape, self._logits.ctypes.data)
            self._settled[turn] = full
        self._session.run_with_iobinding(binding)
        for item in (*self._growing, *self._bounded):
            item.rows = item.after(len(ids))
        self._total, self._turn, self._peak = total, 1 - turn, max(self._peak, total)
        return self._logits.reshape(-1, self._vocab)

    def back(self, count: int) -> int:
        """Take back the newest tokens; see :class:`runners.decode.decoders.Decoder`."""
        total, (start, peak, rows) = self._total, self._before
        self._settled = [False, False]
        if self._options.reaches(self._model, total - count, self._peak):
            for item in (*self._growing, *self._bounded):
                item.crop(self._turn, count)
            self._total -= count
            return 0
        for item, before in zip((*self._growing, *self._bounded), rows, strict=True):
            item.rows = before
        self._total, self._peak, self._turn = start, peak, 1 - self._turn  # the other buffers are those of before
        return total - start - count

    def close(self) -> None:
        """Free the session and the buffers."""
        self._bindings, self._growing, self._bounded = [], [], []
        self._session = None

    def _bind(self, binding: Any, rows: list[_Rows], tokens: int) -> None:
        old, new = self._turn, 1 - self._turn
        for item in rows:
            binding.bind_input(item.past, "cpu", 0, item.kind, item.shape(item.rows), item.addresses[old])
            binding.bind_output(item.present, "cpu", 0, item.kind, item.shape(item.after(tokens)), item.addresses[new])

    def _make_room(self, total: int, count: int) -> None:
        """Buffers for ``total`` tokens and some more, and arrays for a call of ``count``."""
        if total > self._mask.shape[1]:
            rows = min(self._capacity, max(256, 2 * total))
            self._mask = np.ones((1, rows), np.int64)
            self._mask_at = self._mask.ctypes.data
            for item in (*self._growing, *self._bounded):
                item.grow(rows)
            self._settled = [False, False]
        if self._ids.shape[1] != count:
            self._ids, self._positions = np.zeros((1, count), np.int64), np.zeros((1, count), np.int64)
            self._logits = np.zeros((count if self._all else 1) * self._vocab, np.float32)
            self._settled = [False, False]
