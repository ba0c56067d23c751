"""What the rules about likely causes look at, and how they compare numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvparity.exporter.contract.spec import ModelSpec
from kvparity.runners.locate.operators import Inspection
from kvparity.runners.locate.probe_diff import Array, Call, ProbeDiff

__all__ = ["Cause", "Evidence", "Experiment", "Float", "Said", "equal", "finite", "layer_of", "live", "shift_of"]

Float = npt.NDArray[np.float64]
Said = tuple[str, str] | None  # a short name and a sentence; None where a pattern does not fit
_CLOSE = 1e-9


@dataclass(frozen=True)
class Cause:
    """A likely cause: a short name for programs, a sentence for people."""

    name: str
    sentence: str


@dataclass(frozen=True, eq=False)
class Experiment:
    """A right segment that can be evaluated again with something else in it.

    Attributes:
        inputs: What the segment reads, by value name, float64; no masks.
        weights: Its weights of one axis, by name.
        activation: The value that leaves its activation function; empty where it has none.
        gate: The value that enters it.
        inside: Values that its nodes make, by name.
        recorded: Values of the candidate that are known, by value name; everything else is computed from them.
        run: What the segment gives, float64, with other arrays in the place of some of its values.
    """

    inputs: Mapping[str, Array]
    weights: Mapping[str, Array]
    activation: str
    gate: str
    inside: frozenset[str]
    recorded: frozenset[str]
    run: Callable[[Mapping[str, Array]], Array]


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything that a rule may look at.

    Attributes:
        model: The model.
        call: The call.
        diff: The guilty probe, computed from right inputs.
        reference: What every probe should be.
        inspection: The guilty segment of a wrong graph from inside; None where the graph is right or was not opened.
        experiment: The guilty segment of a right graph; None where the graph is wrong.
    """

    model: ModelSpec
    call: Call
    diff: ProbeDiff
    reference: Mapping[str, Array]
    inspection: Inspection | None = None
    experiment: Experiment | None = None

    @property
    def precision(self) -> float:
        """What the diff lets pass, as a share of the largest value: 1e-11 between float64, 1e-5 for float32."""
        with np.errstate(invalid="ignore"):
            largest = float(np.abs(np.asarray(self.diff.want, np.float64)).max(initial=0.0))
        return self.diff.limit / max(1.0, largest) if np.isfinite(largest) else 0.0

    @property
    def close(self) -> float:
        """Share of the largest value by which tensors that a rule calls equal may differ."""
        return max(_CLOSE, self.precision)


def live(evidence: Evidence, array: npt.NDArray[np.generic]) -> Float:
    """(live slots, rest): the slots that count, token axis first."""
    rows = np.moveaxis(np.asarray(array, np.float64), evidence.diff.axis, 1)
    shown = np.broadcast_to(evidence.call.live(rows.shape[1]), rows.shape[:2])
    return np.asarray(rows[shown])


def equal(evidence: Evidence, left: npt.NDArray[Any], right: npt.NDArray[Any], least: float = 0) -> bool:
    """Whether two tensors hold the same numbers, as exactly as the evidence is; ``least`` allows more."""
    if left.shape != right.shape or not left.size:
        return False
    relative = max(evidence.close, least)
    return bool(np.abs(left - right).max() <= relative * max(1.0, float(np.abs(right).max())))


def finite(diff: ProbeDiff) -> bool:
    """Whether slots differ by numbers, rather than by shape or NaN."""
    return diff.position is not None and bool(np.isfinite(diff.got).all())


def shift_of(evidence: Evidence, want: Float, got: Float) -> int | None:
    """By how many slots rows are off by one, the first axis being the slots: 1 where each is its successor's."""
    for shift, left, right in ((1, got[:-1], want[1:]), (-1, got[1:], want[:-1])):
        if equal(evidence, left, right):
            return shift
    return None


def layer_of(model: ModelSpec, probe: str) -> int | None:
    """The decoder layer that a probe or an output belongs to; the first that reads it for masks and rotary tables."""
    parts = probe.split(".")
    rules: dict[str, Callable[[int], int]] = {"layers": lambda index: index, "present": lambda s: model.slots[s].layer}
    if parts[0] in rules and len(parts) > 1 and parts[1].isdigit():
        return rules[parts[0]](int(parts[1]))
    kind = next((kind for kind in ("sliding", "chunked", "full") if parts[0] != "layers" and kind in probe), None)
    return next((layer.index for layer in model.layers if layer.kind == kind), None)
