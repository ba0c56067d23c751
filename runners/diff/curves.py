"""Error along a case: the largest error at each token slot, for the logits and for each cache slot."""

from __future__ import annotations

import numpy as np

from kvparity.exporter.contract.spec import ModelSpec
from kvparity.runners.diff.metrics import Floats
from kvparity.runners.diff.names import slot_of
from kvparity.runners.diff.records import Curve
from kvparity.runners.diff.tensor import TensorDiff

__all__ = ["Curves"]

DIGITS = 3  # of a curve's numbers in a report: a plot shows no more, and a report stays small


class Curves:
    """Collects the curves of one case over its calls.

    Args:
        total: Token slots of the case.
        model: For the layers of cache slots.
    """

    def __init__(self, total: int, model: ModelSpec) -> None:
        self._total, self._model = total, model
        self._errors: dict[str, Floats] = {}
        self._noise: dict[str, Floats] = {}
        self._layers: dict[str, int | None] = {}

    def add(self, diff: TensorDiff) -> None:
        """Take one output of one call; where calls overlap, the larger error counts."""
        if diff.errors is None:
            return
        slot = slot_of(self._model, diff.name)
        name = f"cache.{slot.slot}" if slot else diff.name
        self._layers[name] = slot.layer if slot else None
        self._raise(self._errors, name, diff.first, diff.errors)
        if diff.noise is not None:
            self._raise(self._noise, name, diff.first, diff.noise)

    def _raise(self, curves: dict[str, Floats], name: str, first: int, errors: Floats) -> None:
        curve = curves.setdefault(name, np.full(self._total, np.nan))
        errors = errors[:, max(-first, 0) :]  # columns of a convolution that lie before the first token
        span = curve[max(first, 0) : max(first, 0) + errors.shape[1]]
        np.fmax(span, np.fmax.reduce(errors, axis=0), out=span)

    def records(self) -> tuple[Curve, ...]:
        """The curves, logits first, then by slot."""
        return tuple(self._record(name) for name in self._errors)

    def _record(self, name: str) -> Curve:
        layer, noise = self._layers[name], self._noise.get(name)
        largest = None if noise is None else _rounded(np.fmax.reduce(noise, keepdims=True))[0]
        return Curve(name, layer, _rounded(self._errors[name]), _rounded(noise) if layer is None else (), largest)


def _rounded(values: Floats | None) -> tuple[float | None, ...]:
    if values is None:
        return ()
    return tuple(float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None for value in values.tolist())
