"""Dynamic layout: ``present`` of one call is the next one's past; the first has no rows, and zeros for states."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kvparity.exporter.contract.cases import Step
from kvparity.exporter.contract.dtypes import numpy_dtype
from kvparity.exporter.contract.errors import TraceError
from kvparity.exporter.contract.host_inputs import compute
from kvparity.exporter.contract.ports import host_inputs
from kvparity.exporter.contract.spec import (
    DECODE,
    ExportOptions,
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
    """Plays steps as they are, one call each."""

    def __init__(self, model: ModelSpec, options: ExportOptions) -> None:
        self._model, self._options = model, options
        self._host = host_inputs(model, options)
        self._past: dict[str, Array] = {}
        self._total = 0

    def run(self, session: Session, step: Step, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Play one step; see :class:`runners.decode.play.Player`."""
        check_reach(self._model, self._options, step)
        feeds = {**inputs, **self._pasts(step, inputs["input_ids"].shape[0])}
        if self._host:
            wide = session.info.settings.get("dtype") == "float64"
            rows = {None: step.stop, **{slot.window: self._rows(slot, step) for slot in self._model.slots}}
            feeds.update(compute(self._host, inputs, rows, "float64" if wide else self._options.dtype))
        outputs = session.run(step.graph, feeds)
        presents = {
            past_name(slot.slot, part): outputs[present_name(slot.slot, part)]
            for slot, part in self._model.cache_names()
            if present_name(slot.slot, part) in outputs
        }
        self.restore(step.stop, presents)
        return dict(outputs)

    def restore(self, total: int, caches: Mapping[str, Array]) -> None:
        """Take these as the next past."""
        self._past, self._total = dict(caches), total

    def _rows(self, slot: SlotSpec, step: Step) -> int:
        """Rows that a layer sees in a step."""
        return self._options.kept_rows(slot, step.start, step.reached) + step.tokens

    def _pasts(self, step: Step, batch: int) -> dict[str, Array]:
        if step.graph != DECODE:
            return {}
        names = self._model.cache_names()
        if step.start == 0:
            return {
                past_name(slot.slot, part): np.zeros(
                    slot.shape(part, batch, 0), numpy_dtype(part_dtype(part, self._options.dtype))
                )
                for slot, part in names
            }
        for slot, part in names:
            if past_name(slot.slot, part) not in self._past:
                missing = present_name(slot.slot, part)
                raise TraceError(f"step {step.index - 1} did not return {missing}; the case stops here")
        dropped = self._total - step.start
        if not dropped:
            return self._past
        return {name: rows[:, :, : rows.shape[2] - dropped] for name, rows in self._past.items()}
