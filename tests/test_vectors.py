"""Recording a reference: rows are written once."""

from __future__ import annotations

import numpy as np
import pytest

from kvparity.exporter.contract.cases import Case, Step
from kvparity.exporter.contract.errors import TraceError
from kvparity.exporter.contract.spec import SlotSpec, present_name
from kvparity.exporter.contract.vectors import Recorder

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


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_overflowed_and_stays_as_it_is_has_not_changed(bad: float) -> None:
    """Gemma 3 overflows in float16 in PyTorch itself, and NaN is not NaN."""
    recorder = Recorder(case(), SLOTS)
    for step in case().steps():
        arrays = outputs(step)
        arrays["present.0.key"][:, :, 1] = bad
        recorder.add(step, arrays)
    assert not np.isfinite(recorder.finish()["cache.0.key"][0, 0, 1]).any()


def test_a_row_that_changes_after_it_was_written_is_refused() -> None:
    recorder = Recorder(case(), SLOTS)
    first, second = case().steps()
    recorder.add(first, outputs(first))
    arrays = outputs(second)
    arrays["present.0.key"][:, :, 1] += 1
    with pytest.raises(TraceError, match="changed a cache row of slot 0"):
        recorder.add(second, arrays)
