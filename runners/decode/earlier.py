"""Caches of earlier calls, for a call that continues others than the newest: saved, joined, in another order."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kvparity.exporter.contract.cases import Case, Step
from kvparity.exporter.contract.errors import TraceError
from kvparity.exporter.contract.spec import ExportOptions, ModelSpec, SlotSpec, past_name, present_name
from kvparity.runners.base import Array

__all__ = ["Earlier"]


class Earlier:
    """Keeps what a case's calls returned, in the dynamic layout's shapes, where a later call continues them.

    Args:
        model: The model.
        options: The bundle's options.
        case: What is played.
    """

    def __init__(self, model: ModelSpec, options: ExportOptions, case: Case) -> None:
        self._model, self._options, self._case = model, options, case
        self._steps = {step.index: step for step in case.steps()} if case.moves else {}
        self._named = {call for step in self._steps.values() for call, _ in step.past}
        self._kept: dict[int, dict[str, Array]] = {}
        self._newest: dict[str, Array] = {}  # of the newest call, by input name: what it was fed with, and its own rows

    def past(self, step: Step) -> dict[str, Array]:
        """What a call with ``past`` is fed with, by input name: (batch, kv_heads, rows, head_dim), or states.

        Raises:
            TraceError: A call that it continues did not return a cache, or its rows do not reach far enough back.
        """
        found = {}
        for slot, part in self._model.cache_names():
            parts = [self._row(step, slot, part, place) for place in range(len(step.past))]
            found[past_name(slot.slot, part)] = np.concatenate(parts)
        self._newest = found
        return found

    def add(self, step: Step, outputs: Mapping[str, Array]) -> None:
        """Take what a call returned."""
        if not self._named:
            return
        known: dict[str, Array] = {}
        for slot, part in self._model.cache_names():
            array, name = outputs.get(present_name(slot.slot, part)), past_name(slot.slot, part)
            if array is None:
                continue
            before = self._newest.get(name) if step.start and part in ("key", "value") else None
            if before is not None and array.ndim == 4 and array.shape[2] >= step.tokens:
                end = before.shape[2] - self._dropped(step)
                fed = before[:, :, max(end - self._options.kept_rows(slot, step.start, step.reached), 0) : end]
                array = np.concatenate([fed, array[:, :, array.shape[2] - step.tokens :]], axis=2)
            known[name] = array
        self._newest = known
        if step.index in self._named:
            self._kept[step.index] = known

    def _dropped(self, step: Step) -> int:
        """Rows of the caches in hand beyond the first slot of a call."""
        return 0 if step.past else self._steps[step.index - 1].stop - step.start

    def _row(self, step: Step, slot: SlotSpec, part: str, place: int) -> Array:
        """One batch row of what a call is fed with."""
        call, index = step.past[place]
        source, array = self._steps[call], self._kept[call].get(past_name(slot.slot, part))
        if array is None or array.ndim < 3:
            raise TraceError(f"step {call} did not return {present_name(slot.slot, part)}; the case stops here")
        array = array[index : index + 1]
        if part not in ("key", "value"):
            return array
        pads = self._case.pads
        shift = pads[step.rows[place]] - pads[source.rows[index]]
        kept = self._options.kept_rows(slot, step.start)
        end = array.shape[2] - (source.stop - (step.start - shift))
        missing = max(kept - end, 0)
        if missing > max(kept - (step.start - shift), 0):
            raise TraceError(
                f"step {step.index} goes back from {source.stop} tokens to {step.start - shift} of step {call}, which "
                f"kept {end} rows of slot {slot.slot}; the tokens before it have to be run again (docs/caches.md)"
            )
        return np.pad(array[:, :, max(end - kept, 0) : end], ((0, 0), (0, 0), (missing, 0), (0, 0)))
