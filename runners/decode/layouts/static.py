"""Static layout: fixed buffers; a step longer than the chunk becomes several calls, and its tail is padded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from kvparity.exporter.contract.cases import Step
from kvparity.exporter.contract.dtypes import numpy_dtype
from kvparity.exporter.contract.errors import TraceError
from kvparity.exporter.contract.spec import (
    DECODE,
    PREFILL,
    ExportOptions,
    GraphKind,
    ModelSpec,
    SlotSpec,
    part_dtype,
    past_name,
    present_name,
)
from kvparity.runners.base import Array, Session
from kvparity.runners.decode.reach import check_reach

__all__ = ["Player"]


class Player:
    """Plays steps through buffers, and gives what the dynamic layout would have given.

    A batch wider than the bundle's is played in groups of rows, each with buffers of its own.

    Args:
        model: The model.
        options: The bundle's options, with ``max_len``, ``chunk`` and ``batch``.
        poison: Fill every row that the next call must not read with NaN before each call.
    """

    def __init__(self, model: ModelSpec, options: ExportOptions, *, poison: bool = False) -> None:
        self._model, self._options = model, options
        self._max_len, self._chunk, self._batch = options.max_len or 0, options.chunk or 1, options.batch or 1
        self._unused = np.nan if poison else 0.0
        self._poison = poison
        self._buffers: dict[int, dict[str, Array]] = {}

    def run(self, session: Session, step: Step, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Play one step; see :class:`runners.decode.play.Player`.

        Raises:
            TraceError: The step ends beyond the buffers, or a cache that it needs was not returned.
        """
        if step.stop > self._max_len:
            raise TraceError(
                f"step {step.index} ends at token {step.stop}, and the buffers have {self._max_len} rows; "
                "not playable, export with a larger --max-len"
            )
        check_reach(self._model, self._options, step)
        rows = inputs["input_ids"].shape[0]
        groups = [self._group(session, step, inputs, first) for first in range(0, rows, self._batch)]
        return {name: np.concatenate([group[name] for group in groups])[:rows] for name in groups[0]}

    def restore(self, total: int, caches: Mapping[str, Array]) -> None:
        """Put rows in the dynamic layout's shapes into the buffers."""
        self._buffers = {}
        for slot, part in self._model.cache_names():
            name = past_name(slot.slot, part)
            for first in range(0, len(caches[name]), self._batch):
                rows = _fill(caches[name][first : first + self._batch], self._batch)
                if part in ("key", "value"):
                    buffer = np.full(self._shape(slot, part), self._unused, rows.dtype)
                    buffer[:, :, self._row_of(slot, np.arange(total - rows.shape[2], total))] = rows
                    rows = buffer
                self._buffers.setdefault(first, {})[name] = rows

    def _group(self, session: Session, step: Step, inputs: Mapping[str, Array], first: int) -> dict[str, Array]:
        """One group of batch rows through one step."""
        rows = {name: _fill(array[first : first + self._batch], self._batch) for name, array in inputs.items()}
        if step.start == 0:
            self._buffers[first] = {
                past_name(slot.slot, part): np.full(
                    self._shape(slot, part),
                    self._unused if part in ("key", "value") else 0,
                    numpy_dtype(part_dtype(part, self._options.dtype)),
                )
                for slot, part in self._model.cache_names()
            }
        logits: list[Array] = []
        outputs: Mapping[str, Array] = {}
        for graph, start, stop in self._calls(step):
            self._check_buffers(step, first)
            outputs = session.run(graph, {**self._feeds(graph, rows, step, start, stop), **self._buffers[first]})
            self._keep(outputs, first, stop, step)
            if "logits" in outputs:
                logits.append(_trim(outputs["logits"], stop - start))
        canonical: dict[str, Array] = {}
        if logits:
            canonical["logits"] = logits[-1] if self._options.logits == "last" else np.concatenate(logits, axis=1)
        for slot, part in self._model.cache_names():
            name = present_name(slot.slot, part)
            if name in outputs:
                canonical[name] = self._newest(slot, part, outputs[name], step)
        return canonical

    def _calls(self, step: Step) -> Iterator[tuple[GraphKind, int, int]]:
        """(graph, first slot, one past the last slot) of every call that a step takes."""
        graph = DECODE if step.graph == DECODE and step.tokens == 1 else PREFILL
        size = 1 if graph == DECODE else self._chunk
        for start in range(step.start, step.stop, size):
            yield graph, start, min(start + size, step.stop)

    def _feeds(
        self, graph: GraphKind, rows: Mapping[str, Array], step: Step, start: int, stop: int
    ) -> dict[str, Array]:
        size = 1 if graph == DECODE else self._chunk
        span = slice(start - step.start, stop - step.start)
        position = np.full(size, -1, np.int64)
        position[: stop - start] = np.arange(start, stop)
        return {
            "input_ids": _pad(rows["input_ids"][:, span], size),
            "attention_mask": _pad(rows["attention_mask"][:, :stop], self._max_len),
            "position_ids": _pad(rows["position_ids"][:, span], size),
            "cache_position": position,
        }

    def _keep(self, outputs: Mapping[str, Array], first: int, total: int, step: Step) -> None:
        """Carry the buffers on; poisoned wherever the next call must not read."""
        self._buffers[first] = {}
        for slot, part in self._model.cache_names():
            buffer = outputs.get(present_name(slot.slot, part))
            if buffer is not None and buffer.shape == self._shape(slot, part):
                if self._poison and part in ("key", "value"):
                    ring = self._options.ring(slot) is not None
                    kept = self._options.kept_rows(slot, total, max(total, step.reached)) if ring else total
                    unused = np.ones(buffer.shape[2], bool)
                    unused[self._row_of(slot, np.arange(total - kept, total))] = False
                    buffer = np.where(unused[:, None], buffer.dtype.type(np.nan), buffer)
                self._buffers[first][past_name(slot.slot, part)] = buffer

    def _check_buffers(self, step: Step, first: int) -> None:
        for slot, part in self._model.cache_names():
            if past_name(slot.slot, part) not in self._buffers.get(first, {}):
                name, shape = present_name(slot.slot, part), self._shape(slot, part)
                raise TraceError(f"the call before step {step.index} did not return {name} of shape {shape}")

    def _newest(self, slot: SlotSpec, part: str, buffer: Array, step: Step) -> Array:
        """The rows that the dynamic layout's present holds; a buffer of the wrong shape is given as it is."""
        if part not in ("key", "value") or buffer.shape != self._shape(slot, part):
            return buffer
        kept = self._options.kept_rows(slot, step.stop, step.peak)
        return buffer[:, :, self._row_of(slot, np.arange(step.stop - kept, step.stop))]

    def _row_of(self, slot: SlotSpec, slots: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return slots % self._options.capacity(slot)

    def _shape(self, slot: SlotSpec, part: str) -> tuple[int, ...]:
        return slot.shape(part, self._batch, self._options.capacity(slot))


def _pad(array: Array, size: int) -> Array:
    """Zeros after the last column."""
    return np.pad(array, ((0, 0), (0, size - array.shape[1])))


def _fill(rows: Array, batch: int) -> Array:
    """Repeat the last row until the batch is full."""
    missing: Sequence[int] = [rows.shape[0] - 1] * (batch - rows.shape[0])
    return np.concatenate([rows, rows[missing]]) if missing else rows


def _trim(logits: Array, tokens: int) -> Array:
    """Logits without those of padding; of the wrong rank as they are."""
    return logits[:, :tokens] if logits.ndim == 3 else logits
