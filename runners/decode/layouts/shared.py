"""Shared layout: buffers that the session writes in place; the host only makes them longer when they fill up."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from kvparity.exporter.contract.cases import Step
from kvparity.exporter.contract.dtypes import numpy_dtype
from kvparity.exporter.contract.errors import TraceError
from kvparity.exporter.contract.spec import DECODE, PREFILL, ExportOptions, ModelSpec, SlotSpec, past_name, present_name
from kvparity.runners.base import Array, Session
from kvparity.runners.decode.reach import check_reach

__all__ = ["BLOCK", "Player", "capacity_for"]

BLOCK = 64  # full slots grow by this many rows
_GARBAGE = 1e3  # what a poisoned row holds: finite, as the layout asks


def capacity_for(total: int, model: ModelSpec, options: ExportOptions) -> int:
    """Rows of full slots for ``total`` tokens: whole blocks, and never fewer than a ring."""
    rings = [options.ring(slot) or 0 for slot in model.slots]
    return -(-max(total, *rings) // BLOCK) * BLOCK


class Player:
    """Plays every step as one call, and gives what the dynamic layout would have given.

    Args:
        model: The model.
        options: The bundle's options.
        poison: Fill every row that the next call must not read with a large number before each call.
    """

    def __init__(self, model: ModelSpec, options: ExportOptions, *, poison: bool = False) -> None:
        self._model, self._options, self._dtype = model, options, numpy_dtype(options.dtype)
        self._poison = poison
        self._buffers: dict[str, Array] = {}

    def run(self, session: Session, step: Step, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Play one step; see :class:`runners.decode.play.Player`.

        Raises:
            TraceError: A buffer that the step needs was not returned.
        """
        check_reach(self._model, self._options, step)
        batch, capacity = inputs["input_ids"].shape[0], capacity_for(step.stop, self._model, self._options)
        if step.start == 0:
            self._buffers = {}
        for slot, part in self._model.cache_names():
            self._make_room(slot, part, step, batch, capacity)
        feeds = {
            "input_ids": inputs["input_ids"],
            "attention_mask": np.pad(inputs["attention_mask"], ((0, 0), (0, capacity - step.stop))),
            "position_ids": inputs["position_ids"],
            "past_lengths": np.full(batch, step.start, np.int64),
            **self._buffers,
        }
        graph = DECODE if step.graph == DECODE and step.tokens == 1 else PREFILL
        outputs = session.run(graph, feeds)
        self._buffers = {
            past_name(slot.slot, part): outputs[present_name(slot.slot, part)]
            for slot, part in self._model.cache_names()
            if present_name(slot.slot, part) in outputs
        }
        return {
            name: array if name == "logits" else self._newest(name, array, step, capacity)
            for name, array in outputs.items()
        }

    def restore(self, total: int, caches: Mapping[str, Array]) -> None:
        """Put rows in the dynamic layout's shapes into new buffers."""
        capacity = capacity_for(total, self._model, self._options)
        for slot, part in self._model.cache_names():
            rows = caches[past_name(slot.slot, part)]
            shape = self._shape(slot, part, rows.shape[0], capacity)
            buffer = np.zeros(shape, rows.dtype)
            buffer[:, :, np.arange(total - rows.shape[2], total) % shape[2]] = rows
            self._buffers[past_name(slot.slot, part)] = buffer

    def _make_room(self, slot: SlotSpec, part: str, step: Step, batch: int, capacity: int) -> None:
        name, shape = past_name(slot.slot, part), self._shape(slot, part, batch, capacity)
        old = self._buffers.get(name)
        if old is None and step.start > 0:
            raise TraceError(f"the call before step {step.index} did not return {present_name(slot.slot, part)}")
        kind = self._dtype if old is None else old.dtype
        buffer = np.zeros(shape, kind) if old is None or old.shape != shape else old
        if old is not None and buffer is not old:
            if old.shape[:2] != shape[:2] or old.shape[2] > shape[2] or old.shape[3] != shape[3]:
                raise TraceError(f"{present_name(slot.slot, part)} has shape {old.shape}; expected up to {shape}")
            buffer[:, :, : old.shape[2]] = old
        if self._poison:
            kept = self._options.kept_rows(slot, step.start, step.reached) if self._options.ring(slot) else step.start
            unused = np.ones(shape[2], bool)
            unused[np.arange(step.start - kept, step.start) % shape[2]] = False
            buffer[:, :, unused] = _GARBAGE
        self._buffers[name] = buffer

    def _newest(self, name: str, buffer: Array, step: Step, capacity: int) -> Array:
        """The rows that the dynamic layout's present holds; a buffer of the wrong shape is given as it is."""
        for slot, part in self._model.cache_names():
            if present_name(slot.slot, part) == name and buffer.shape == self._shape(
                slot, part, buffer.shape[0], capacity
            ):
                kept = self._options.kept_rows(slot, step.stop, step.peak)
                rows: npt.NDArray[np.int64] = np.arange(step.stop - kept, step.stop) % buffer.shape[2]
                return buffer[:, :, rows]
        return buffer

    def _shape(self, slot: SlotSpec, part: str, batch: int, capacity: int) -> tuple[int, ...]:
        return slot.shape(part, batch, self._options.ring(slot) or capacity)
