"""Recording a reference: rows are written once, and a reference that is not finite is no reference."""

from __future__ import annotations

import numpy as np
import pytest

from exporter.cases import Case, Step
from exporter.errors import TraceError
from exporter.spec import SlotSpec, present_name
from exporter.vectors import Recorder

SLOTS = (SlotSpec(slot=0, layer=0, kind="full", window=None, kv_heads=1, head_dim=2, value_head_dim=2),)


def outputs(step: Step, batch: int = 1, dtype: str = "float16") -> dict[str, np.ndarray]:
    rows = np.tile(np.arange(step.stop, dtype=dtype)[:, None], (batch, 1, 1, 2))
    parts = {present_name(0, part): rows.copy() for part in ("key", "value")}
    return {"logits": np.zeros((batch, step.tokens, 3), dtype), **parts}


def case(pads: tuple[int, ...] = (0,)) -> Case:
    return Case("c", np.zeros((len(pads), 4), np.int64), (3, 1), pads)


def test_a_finite_reference_is_taken_whole() -> None:
    recorder = Recorder(case(), SLOTS)
    for step in case().steps():
        recorder.add(step, outputs(step))
    assert recorder.finish()["logits"].shape == (1, 4, 3)


@pytest.mark.parametrize(("name", "what"), [("logits", "the logits"), ("present.0.value", "the values of slot 0")])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_reference_that_overflows_is_refused_and_said_to_be_pytorchs_own(name: str, what: str, bad: float) -> None:
    recorder, step = Recorder(case(), SLOTS), next(case().steps())
    arrays = outputs(step)
    arrays[name][..., 2, 1] = bad
    with pytest.raises(TraceError, match=f"{what} are not finite in PyTorch itself, from position 2, as float16"):
        recorder.add(step, arrays)


def test_padded_slots_may_hold_anything_and_real_ones_beside_them_may_not() -> None:
    padded = case((0, 2))
    recorder = Recorder(padded, SLOTS)
    for step in padded.steps():
        arrays = outputs(step, 2)
        arrays["present.0.key"][1, :, :2] = np.nan
        recorder.add(step, arrays)
    recorder, step = Recorder(padded, SLOTS), next(padded.steps())
    arrays = outputs(step, 2)
    arrays["present.0.key"][0, :, 1] = np.nan
    with pytest.raises(TraceError, match="from position 1"):
        recorder.add(step, arrays)


def test_a_row_that_changes_after_it_was_written_is_refused() -> None:
    recorder = Recorder(case(), SLOTS)
    first, second = case().steps()
    recorder.add(first, outputs(first))
    arrays = outputs(second)
    arrays["present.0.key"][:, :, 1] += 1
    with pytest.raises(TraceError, match="changed a cache row of slot 0"):
        recorder.add(second, arrays)
