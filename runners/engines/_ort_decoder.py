"""ONNX Runtime for one conversation: one session, buffers bound, nothing copied between steps.

decode.onnx takes an empty past and any number of tokens, so it serves prompt and steps alike: one copy of the weights
in memory and half the loading time. Caches alternate between two sets of buffers of the final size; a step binds views
of them, so ONNX Runtime allocates nothing, and slots whose size no longer changes are bound once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from exporter.bundle import Bundle
from exporter.errors import TraceError
from exporter.spec import DECODE, SlotSpec, past_name, present_name
from runners.base import numpy_dtype
from runners.engines.ort import open_session

__all__ = ["OrtDecoder"]

_ONNX_TYPES = {"bfloat16": 16}  # TensorProto.BFLOAT16; numpy itself has no such dtype


class OrtDecoder:
    """See :class:`runners.decoders.Decoder`; dynamic layout, batch of one."""

    def __init__(self, bundle: Bundle, options: Mapping[str, str]) -> None:
        self._model, self._options = bundle.model, bundle.options
        self._session = open_session(bundle, options).native(DECODE)
        self._capacity = bundle.model.max_position
        self._dtype = numpy_dtype(bundle.options.dtype)
        self._buffers: list[dict[tuple[int, str], npt.NDArray[Any]]] = [{}, {}]
        self._bound: list[dict[str, tuple[int, ...]]] = [{}, {}]
        self._bindings = [self._session.io_binding(), self._session.io_binding()]
        self._mask = np.ones((1, 0), np.int64)
        self._inputs: dict[str, npt.NDArray[Any]] = {}
        self._logits = np.zeros(0, np.float32)
        self._total = self._turn = 0

    def reset(self) -> None:
        """Forget the conversation; buffers stay."""
        self._total = 0

    def feed(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Append tokens; see :class:`runners.decoders.Decoder`.

        Raises:
            TraceError: The conversation would pass the model's last position.
        """
        start, total = self._total, self._total + len(ids)
        if total > self._capacity:
            raise TraceError(f"{total} tokens, but the model has {self._capacity} positions")
        self._grow(total)
        turn = self._turn
        binding, bound = self._bindings[turn], self._bound[turn]
        count = len(ids)
        self._token(count)
        self._inputs["input_ids"][0] = ids
        self._inputs["position_ids"][0] = range(start, total)
        bind = binding.bind_input
        for name, array in (*self._inputs.items(), ("attention_mask", self._mask[:, :total])):
            _bind(bind, bound, name, array, array.shape)
        for slot, part in self._model.cache_names():
            old, new = (self._buffers[side][slot.slot, part] for side in (turn, 1 - turn))
            _bind(bind, bound, past_name(slot.slot, part), old, self._shape(slot, part, start))
            name = present_name(slot.slot, part)
            _bind(binding.bind_output, bound, name, new, self._shape(slot, part, total))
        rows = count if self._options.logits == "all" else 1
        _bind(binding.bind_output, bound, "logits", self._logits, (1, rows, self._model.vocab_size))
        self._session.run_with_iobinding(binding)
        self._total, self._turn = total, 1 - turn
        return self._logits[(rows - 1) * self._model.vocab_size : rows * self._model.vocab_size]

    def close(self) -> None:
        """Free the session and the buffers."""
        self._bindings, self._buffers, self._bound = [], [{}, {}], [{}, {}]
        self._session = None

    def _shape(self, slot: SlotSpec, part: str, total: int) -> tuple[int, ...]:
        return (1, slot.kv_heads, slot.kept_rows(total, self._options.bounded), slot.dim(part))

    def _grow(self, total: int) -> None:
        """Room for ``total`` tokens and some more; what is cached moves along."""
        if total <= self._mask.shape[1]:
            return
        rows = min(self._capacity, max(256, 2 * total))
        self._mask = np.ones((1, rows), np.int64)
        for side, buffers in enumerate(self._buffers):
            self._bound[side].clear()
            for slot, part in self._model.cache_names():
                size = int(np.prod(self._shape(slot, part, rows)))
                buffer = np.zeros(size, self._dtype)
                old = buffers.get((slot.slot, part))
                if old is not None:
                    buffer[: old.size] = old
                buffers[slot.slot, part] = buffer

    def _token(self, count: int) -> None:
        """Arrays for a call of ``count`` tokens; the same ones while the count stays."""
        if not self._inputs or self._inputs["input_ids"].shape[1] != count:
            self._inputs = {name: np.zeros((1, count), np.int64) for name in ("input_ids", "position_ids")}
            rows = count if self._options.logits == "all" else 1
            self._logits = np.zeros(rows * self._model.vocab_size, np.float32)
            for bound in self._bound:
                bound.clear()


def _bind(
    bind: Any, bound: dict[str, tuple[int, ...]], name: str, array: npt.NDArray[Any], shape: tuple[int, ...]
) -> None:
    """Bind a view of an array's memory, unless the same shape is bound already."""
    if bound.get(name) != shape:
        bound[name] = shape
        bind(name, "cpu", 0, _ONNX_TYPES.get(array.dtype.name, array.dtype), shape, array.ctypes.data)
