"""How one probe of one call differs from what it should be: where first, where most, and what the numbers are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvparity.exporter.contract.cases import Case, Step
from kvparity.runners.diff.names import is_state

__all__ = [
    "BLOCKED",
    "RELATIVE",
    "Array",
    "Call",
    "ProbeDiff",
    "diff_probe",
    "fill_padding",
    "position_axis",
    "settle_mask",
]

BLOCKED = -1e9  # what a graph adds where a query may not look
_MASKED = -1e8  # anything below is a blocked entry, whatever a library fills in
RELATIVE = 1e-11  # float64 PyTorch and a float64 graph differ by 1e-14 of the largest value
Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a case and what it is fed with.

    Attributes:
        case: The case, with the rows that the call carries alone.
        step: The call.
        feeds: Inputs of the graph by name.
    """

    case: Case
    step: Step
    feeds: Mapping[str, Array]

    def live(self, count: int) -> npt.NDArray[np.bool_]:
        """(batch, count): which of the last ``count`` slots hold a token."""
        return self.case.mask[:, self.step.stop - count : self.step.stop] == 1


@dataclass(frozen=True, eq=False)
class ProbeDiff:
    """One probe that differs.

    Attributes:
        probe: Name of the probe.
        value: Name of the ONNX value.
        difference: Largest difference over live slots; inf where shapes differ or numbers are not finite.
        limit: What would have passed.
        position: First token slot over the limit; None where shapes differ.
        batch: Its batch row.
        index: Where the difference is largest at that slot.
        expected: Value that should be there.
        actual: Value that is.
        want: The whole expected tensor.
        got: The whole actual tensor.
        over: (batch, slots of the tensor) bool: slots over the limit.
        detail: In words, where shapes differ.
    """

    probe: str
    value: str
    difference: float
    limit: float
    position: int | None
    batch: int | None
    index: tuple[int, ...] | None
    expected: float | None
    actual: float | None
    want: Array
    got: Array
    over: npt.NDArray[np.bool_]
    detail: str = ""

    @property
    def axis(self) -> int:
        """Axis of token slots."""
        return position_axis(self.probe)


def position_axis(probe: str) -> int:
    """Axis that counts token slots: 2 where heads come before them, 1 elsewhere."""
    headed = probe.rpartition(".")[2] in ("query", "key", "value") and "per_layer" not in probe
    return 2 if headed or probe.startswith("mask.") else 1


def settle_mask(mask: Array) -> Array:
    """Additive masks of two libraries made alike: 0 or :data:`BLOCKED`."""
    return np.asarray(np.where(mask < _MASKED, BLOCKED, mask))


def diff_probe(
    call: Call, probe: str, value: str, want: Array, got: Array, relative: float = RELATIVE
) -> ProbeDiff | None:
    """Compare one probe on live slots.

    Args:
        call: Says which slots are live.
        probe: Name of the probe, or of any other value.
        value: Name of the ONNX value.
        want: Expected.
        got: Actual.
        relative: Largest difference that passes, as a share of the largest expected value (at least 1).

    Returns:
        The difference, or None where it is within the limit.
    """
    if want.shape != got.shape:
        nothing = np.zeros((0, 0), np.bool_)
        detail = f"has shape {got.shape}, expected {want.shape}"
        return ProbeDiff(probe, value, float("inf"), 0.0, None, None, None, None, None, want, got, nothing, detail)
    mask = probe.startswith("mask.")
    if mask:
        want, got = settle_mask(want), settle_mask(got)
    axis, live = _slots(call, probe, want.shape)
    rows = [
        np.moveaxis(np.asarray(array, np.float64).reshape(_at_least_2d(array, axis)), axis or 1, 1)
        for array in (want, got)
    ]
    limit = 0.5 if mask else relative * max(1.0, float(np.abs(rows[0][live]).max(initial=0.0)))
    with np.errstate(invalid="ignore"):
        distance = np.abs(rows[0] - rows[1])
    distance = np.where(np.isnan(distance), np.inf, distance)
    by_slot = np.where(live, distance.max(axis=tuple(range(2, distance.ndim)), initial=0.0), 0.0)
    over = by_slot > limit
    if not over.any():
        return None
    slot = int(np.argmax(over.any(axis=0)))
    batch = int(np.argmax(over[:, slot]))
    inner = np.unravel_index(int(np.argmax(distance[batch, slot])), distance.shape[2:])
    place: tuple[Any, ...] = (batch, slot, *inner)
    index = [int(item) for item in inner]
    if axis is not None:
        index[axis - 1 : axis - 1] = [slot]
    return ProbeDiff(
        probe=probe,
        value=value,
        difference=float(by_slot.max()),
        limit=limit,
        position=None if axis is None else call.step.stop - rows[0].shape[1] + slot,
        batch=None if axis is None else batch,
        index=tuple(index) if axis is None else (batch, *index),
        expected=float(rows[0][place]),
        actual=float(rows[1][place]),
        want=want,
        got=got,
        over=over,
    )


def fill_padding(call: Call, probe: str, array: Array, other: Array) -> Array:
    """A probe with another tensor's numbers on padded slots, whose own may be anything, NaN too."""
    axis, live = _slots(call, probe, array.shape)
    if axis is None:
        return array
    shape = [1] * array.ndim
    shape[0], shape[axis] = live.shape
    return np.where(live.reshape(shape), array, other)


def _slots(call: Call, probe: str, shape: tuple[int, ...]) -> tuple[int | None, npt.NDArray[np.bool_]]:
    """Axis of token slots and which of them count; no axis where the value has none."""
    if is_state(probe):
        return None, np.ones((1, 1), np.bool_)
    axis: int | None = position_axis(probe)
    if "." not in probe and "embed" not in probe:  # a value without a readable name
        fitting = [at for at in (1, 2) if len(shape) > at and shape[at] == call.step.tokens]
        axis = fitting[-1] if fitting and len(shape) > 2 else None
    if axis is None or len(shape) <= axis or shape[axis] > call.step.stop or shape[0] not in (1, call.case.batch):
        return None, np.ones((1, 1), np.bool_)
    return axis, np.broadcast_to(call.live(shape[axis])[: shape[0]], (shape[0], shape[axis]))


def _at_least_2d(array: Array, axis: int | None) -> tuple[int, ...]:
    return tuple(array.shape) if axis is not None else (1, 1, *array.shape)
