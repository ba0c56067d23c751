"""Likely causes in an engine: a guilty segment is tried again with something else in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations

import numpy as np

from kvparity.runners.locate.cause_values import activations
from kvparity.runners.locate.evidence import Evidence, Experiment, Said, equal, finite, live, shift_of
from kvparity.runners.locate.probe_diff import Array

_MOST = 40  # evaluations for a guess


def activation(evidence: Evidence) -> Said:
    """Another activation function."""
    tried = evidence.experiment
    if tried is None or not tried.activation or not finite(evidence.diff):
        return None
    gate = tried.inputs.get(tried.gate, evidence.reference.get(tried.gate))
    for words, value in activations(np.asarray(gate, np.float64)).items() if gate is not None else ():
        if _gives(evidence, tried, {tried.activation: value}):
            return "activation", f"the activation is {words}, which is not the model's"
    return None


def other_inputs(evidence: Evidence) -> Said:
    """An input left out, counted twice, exchanged for another, or another value in its place."""
    tried = evidence.experiment
    if tried is None or not finite(evidence.diff):
        return None
    for count, (sentence, changed) in enumerate(_changes(evidence, tried.inputs)):
        if count == _MOST:
            return None
        if _gives(evidence, tried, changed):
            return "inputs", sentence
    return None


def scaled_input(evidence: Evidence) -> Said:
    """The segment's input itself, by one factor: what should be done to it was not done."""
    diff, tried = evidence.diff, evidence.experiment
    if tried is None or not finite(diff):
        return None
    got = live(evidence, diff.got)
    for name, array in tried.inputs.items():
        source = live(evidence, array.reshape(diff.want.shape)) if array.size == diff.want.size else np.zeros(0)
        power = float((source * source).sum())
        factor = float((source * got).sum()) / power if source.shape == got.shape and power else 0.0
        if factor and equal(evidence, got, source * factor):
            return "passed-through", f"it is {name} times {factor:.6g}, and nothing else was done to it"
    return None


def softcap(evidence: Evidence) -> Said:
    """Logits that are capped at another number: cap x tanh(x / cap)."""
    diff, tried = evidence.diff, evidence.experiment
    if tried is None or diff.probe not in ("logits", "lm_head") or not finite(diff):
        return None
    got = live(evidence, diff.got)
    for array in tried.inputs.values():
        if array.shape != diff.want.shape:
            continue
        source = live(evidence, array)
        at = np.unravel_index(int(np.abs(source).argmax()), source.shape)
        cap = _cap(abs(float(source[at])), abs(float(got[at])))
        if cap is not None and equal(evidence, cap * np.tanh(source / cap), got):
            return "softcap", f"logits are capped at {cap:.4g}, which is not the model's"
    return None


def _cap(value: float, capped: float) -> float | None:
    """The cap that makes ``capped`` of ``value``; bisection, since it only grows with the cap."""
    if not 0 < capped < value:
        return None
    low, high = capped, 1e6
    for _ in range(200):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if middle * np.tanh(value / middle) < capped else (low, middle)
    return high


def shifted_tokens(evidence: Evidence) -> Said:
    """Every token has what its neighbour should have."""
    diff = evidence.diff
    if not finite(diff) or diff.want.ndim != 3 or diff.over.shape[0] != 1 or diff.want.shape[1] < 4:
        return None
    shift = shift_of(evidence, live(evidence, diff.want), live(evidence, diff.got))
    return None if shift is None else ("shifted", f"position p holds what position p{shift:+d} should")


def _changes(evidence: Evidence, inputs: Mapping[str, Array]) -> Iterator[tuple[str, dict[str, Array]]]:
    if "norm" in evidence.diff.probe:  # of a sum, the mean is the sum of means
        centred = {name: array - array.mean(axis=-1, keepdims=True) for name, array in inputs.items()}
        yield "the mean is taken off before the norm, as LayerNorm does", centred
    for name, array in inputs.items():
        yield f"{name} is left out", {name: np.zeros_like(array)}
        yield f"{name} is counted twice", {name: 2 * array}
    for left, right in combinations(inputs, 2):
        if inputs[left].shape == inputs[right].shape:
            yield f"{left} and {right} are exchanged", {left: inputs[right], right: inputs[left]}
    layer = ".".join(evidence.diff.probe.split(".")[:2])
    near = {name: array for name, array in evidence.reference.items() if name.startswith(f"{layer}.")}
    for name, array in inputs.items():
        for other, value in near.items():
            if value.shape == array.shape and value is not array:
                yield f"it is made of {other} where it should be of {name}", {name: value}


def _gives(evidence: Evidence, tried: Experiment, changed: Mapping[str, Array]) -> bool:
    result = tried.run(changed)
    return equal(evidence, live(evidence, result), live(evidence, evidence.diff.got))
