"""ONNX Runtime for one conversation in the shared layout: every buffer is bound once, a step writes four numbers.

decode.onnx serves single tokens and prefill.onnx everything longer; each is loaded when it is first needed. Past and
present are the same memory, so that nothing is copied between steps. Full slots get longer in blocks; only then is
anything bound again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.dtypes import numpy_dtype
from kvparity.exporter.contract.errors import TraceError
from kvparity.exporter.contract.spec import DECODE, PREFILL, GraphKind, past_name, present_name
from kvparity.runners.decode.layouts.shared import BLOCK, capacity_for
from kvparity.runners.engines.ort import element_type, open_session

__all__ = ["OrtSharedDecoder"]

_SPARE = 2 * BLOCK - 1  # rows added at once for steps: growing copies the full slots; a prompt attends to every row


class OrtSharedDecoder:
    """See :class:`runners.decode.decoders.Decoder`; shared layout, batch of one."""

    def __init__(self, bundle: Bundle, options: Mapping[str, str]) -> None:
        self._model, self._options = bundle.model, bundle.options
        self._session = open_session(bundle, options)
        self._dtype = numpy_dtype(bundle.options.dtype)
        self._low = self._session.low_memory
        self._decode: Any = None if self._low else self._session.native(DECODE)
        self._buffers: dict[str, npt.NDArray[Any]] = {}
        self._binding: Any = None
        self._mask = np.zeros((1, 0), np.int64)
        self._id, self._position = np.zeros((1, 1), np.int64), np.zeros((1, 1), np.int64)
        self._length = np.zeros(1, np.int64)
        self._logits = np.zeros((1, 1, self._model.vocab_size), np.float32)
        self._total = self._peak = 0
        self._before: tuple[int, int, dict[str, npt.NDArray[Any]]] = (0, 0, {})

    def reset(self) -> None:
        """Forget the conversation, and its buffers: the next one attends to as many rows as it needs."""
        self._buffers, self._binding = {}, None
        self._mask = np.zeros((1, 0), np.int64)
        self._total = self._peak = 0

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
        start, total = self._total, self._total + len(ids)
        if total > self._mask.shape[1]:
            self._make_room(total, _SPARE if len(ids) == 1 else 0)
        self._mask[0, start:total] = 1
        self._length[0] = start
        self._before = start, self._peak, self._rings() if start and len(ids) > 1 + self._options.rewind else {}
        self._total, self._peak = total, max(self._peak, total)
        if len(ids) > 1:
            return self._feed_many(ids, start)
        self._id[0, 0] = ids[0]
        self._position[0, 0] = start
        if self._binding is None:
            self._decode = self._session.native(DECODE)
            self._binding = self._bind(DECODE, self._id, self._position, self._logits)
        self._decode.run_with_iobinding(self._binding)
        return self._logits[0]

    def back(self, count: int) -> int:
        """Take back the newest tokens; see :class:`runners.decode.decoders.Decoder`."""
        total, (start, peak, rings) = self._total, self._before
        if self._options.reaches(self._model, total - count, self._peak):
            self._total, again = total - count, 0
        else:
            for name, rows in rings.items():
                self._buffers[name][:] = rows
            self._total, self._peak, again = start, peak, total - start - count
        self._mask[0, self._total :] = 0
        return again

    def _rings(self) -> dict[str, npt.NDArray[Any]]:
        """Copies of the rings: a call that cannot be taken back by a count overwrites rows that are wanted then."""
        rings = {
            past_name(slot.slot, part)
            for slot, part in self._model.cache_names()
            if self._options.ring(slot) is not None
        }
        return {name: self._buffers[name].copy() for name in rings}

    def close(self) -> None:
        """Free the sessions and the buffers."""
        self._binding = self._decode = None
        self._buffers = {}
        self._session.close()

    def _feed_many(self, ids: npt.NDArray[np.int64], start: int) -> npt.NDArray[np.float32]:
        if self._low:  # a session lives as long as its bindings
            self._decode = self._binding = None
        tokens = np.ascontiguousarray(ids, np.int64)[None]
        positions = np.arange(start, start + len(ids), dtype=np.int64)[None]
        count = 1 if self._options.logits == "last" else len(ids)
        logits = np.empty((1, count, self._model.vocab_size), np.float32)
        session = self._session.native(PREFILL)
        session.run_with_iobinding(self._bind(PREFILL, tokens, positions, logits))
        return logits[0]

    def _bind(self, graph: GraphKind, ids: Any, positions: Any, logits: Any) -> Any:
        binding = self._session.native(graph).io_binding()
        given = {
            "input_ids": ids,
            "attention_mask": self._mask,
            "position_ids": positions,
            "past_lengths": self._length,
            **self._buffers,
        }
        for name, array in given.items():
            _place(binding.bind_input, name, array)
        _place(binding.bind_output, "logits", logits)
        for slot, part in self._model.cache_names():
            _place(binding.bind_output, present_name(slot.slot, part), self._buffers[past_name(slot.slot, part)])
        return binding

    def _make_room(self, total: int, spare: int) -> None:
        """Buffers for ``total`` tokens and ``spare`` more; what they hold moves along."""
        if total > self._model.max_position:
            raise TraceError(f"{total} tokens, but the model has {self._model.max_position} positions")
        capacity = capacity_for(total + spare, self._model, self._options)
        old, old_mask = self._buffers, self._mask
        self._mask = np.zeros((1, capacity), np.int64)
        self._mask[:, : old_mask.shape[1]] = old_mask
        self._buffers = {}
        for slot, part in self._model.cache_names():
            name = past_name(slot.slot, part)
            rows = self._options.ring(slot) or capacity
            before = old.get(name)
            if before is not None and before.shape[2] == rows:
                self._buffers[name] = before
                continue
            self._buffers[name] = np.zeros(slot.shape(part, 1, rows), self._dtype)
            if before is not None:
                self._buffers[name][:, :, : before.shape[2]] = before
        self._binding = None


def _place(bind: Any, name: str, array: npt.NDArray[Any]) -> None:
    bind(name, "cpu", 0, element_type(array.dtype), array.shape, array.ctypes.data)
