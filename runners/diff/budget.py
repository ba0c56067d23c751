"""How well an engine rounds: its error against float64 over PyTorch's own float32 error against float64.

About 1 means that the engine rounds as well as PyTorch; 100 means a fault or a kernel of reduced precision.

A short case can have almost no noise: one token of a two-layer model may come out exact to the last bit, and a ratio
over nothing says nothing. So the denominator is never less than :data:`FLOOR_ULPS` units in the last place of the
tensor's largest value, in the dtype that the bundle computes in. Two correct kernels that add in another order differ
by that much in one dot product already.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvparity.runners.diff.metrics import Floats

__all__ = [
    "FLOOR_ULPS",
    "Budget",
    "Noise",
    "add64",
    "budget_of",
    "floor_of",
    "noise_of",
    "ratio",
    "stored_in",
    "terms64",
]

FLOOR_ULPS = 4
_MANTISSA = {"float64": 52, "float32": 23, "float16": 10, "bfloat16": 7}


@dataclass(frozen=True)
class Budget:
    """Errors against float64, and their ratios.

    Attributes:
        candidate_max: Largest error of the candidate.
        reference_max: Largest error of PyTorch in float32.
        candidate_rms: Root mean square error of the candidate.
        reference_rms: The same of PyTorch.
        floor: What the denominators are raised to where PyTorch's error is less.
        ratio_max: candidate_max / max(reference_max, floor): what ``--tol auto`` compares with ``--budget``.
        ratio_rms: candidate_rms / max(reference_rms, floor / 4).
    """

    candidate_max: float
    reference_max: float
    candidate_rms: float
    reference_rms: float
    floor: float
    ratio_max: float
    ratio_rms: float


@dataclass(frozen=True)
class Noise:
    """PyTorch's own float32 error on some tensor.

    Attributes:
        largest: Largest absolute error against float64.
        floor: :data:`FLOOR_ULPS` units in the last place of the tensor's largest value.
    """

    largest: float
    floor: float

    @property
    def effective(self) -> float:
        """What a budget multiplies."""
        return max(self.largest, self.floor)

    def merge(self, other: Noise) -> Noise:
        """Noise of two tensors taken as one."""
        return Noise(max(self.largest, other.largest), max(self.floor, other.floor))


def floor_of(largest: float, dtype: str) -> float:
    """:data:`FLOOR_ULPS` units in the last place of a value, in a dtype given by name."""
    if not largest or not np.isfinite(largest):
        return 0.0
    exponent = np.floor(np.log2(largest))
    return float(FLOOR_ULPS * 2.0 ** (exponent - _MANTISSA.get(dtype, 23)))


def noise_of(
    values: npt.NDArray[np.generic], delta: npt.NDArray[np.generic], live: npt.NDArray[np.bool_], dtype: str
) -> Noise:
    """Noise of one tensor of a case.

    Args:
        values: The float32 reference, (batch, rows, …).
        delta: float64 reference minus ``values``, same shape.
        live: (batch, rows): False on padding.
        dtype: What the bundle computes in.
    """
    picked = np.abs(delta[live])
    largest = float(np.abs(values[live]).max(initial=0.0))
    return Noise(float(picked.max(initial=0.0)), floor_of(largest, dtype))


def stored_in(noise: Noise, dtype: str, stored: str, budget: float) -> Noise:
    """Noise of values that were rounded once more, when they were saved: the limit grows by that rounding alone.

    Args:
        noise: Noise of values of ``dtype``.
        dtype: What they were computed in.
        stored: What they were saved in: half a unit in its last place is added to ``budget`` times the noise.
        budget: What the noise is multiplied with.
    """
    coarser = _MANTISSA[dtype] - _MANTISSA[stored]
    if coarser <= 0 or not budget:
        return noise
    rounding = noise.floor / FLOOR_ULPS * 2.0**coarser / 2 / budget
    return Noise(noise.largest + rounding, noise.floor + rounding)


def add64(first: Mapping[str, Floats], second: Mapping[str, Floats]) -> dict[str, Floats]:
    """Terms (max, sum of squares, count) of two sets of values together, for ``candidate`` and ``reference``."""
    result = dict(first)
    for name, terms in second.items():
        old = result.get(name, np.zeros(3))
        result[name] = np.asarray([np.maximum(old[0], terms[0]), old[1] + terms[1], old[2] + terms[2]])
    return result


def terms64(error: Floats) -> Floats:
    """(max, sum of squares, count) of some errors."""
    largest = np.maximum(error.max(initial=0.0), -error.min(initial=0.0))
    return np.asarray([largest, np.dot(error.ravel(), error.ravel()), error.size], dtype=np.float64)


def budget_of(totals64: Mapping[str, Floats], noise: Noise) -> Budget | None:
    """Budget from the terms that :func:`runners.diff.tensor.compare` gathers; None where there is no float64.

    Args:
        totals64: ``candidate`` and ``reference`` terms: (max, sum of squares, count).
        noise: PyTorch's own error on all that the terms were gathered from, or more.
    """
    if "candidate" not in totals64 or "reference" not in totals64:
        return None
    candidate, reference = totals64["candidate"], totals64["reference"]
    rms, reference_rms = _rms(candidate), _rms(reference)
    return Budget(
        candidate_max=float(candidate[0]),
        reference_max=noise.largest,
        candidate_rms=rms,
        reference_rms=reference_rms,
        floor=noise.floor,
        ratio_max=ratio(float(candidate[0]), noise.effective),
        ratio_rms=ratio(rms, max(reference_rms, noise.floor / FLOOR_ULPS)),
    )


def _rms(terms: Floats) -> float:
    return float(np.sqrt(terms[1] / terms[2])) if terms[2] else 0.0


def ratio(error: float, unit: float) -> float:
    """An error in units of the reference's own; infinite where there is an error and no unit."""
    if unit:
        return error / unit
    return 0.0 if error == 0 else float("inf")
