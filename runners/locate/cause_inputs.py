"""Rules that try a guilty segment again with something else in it, where the graph is right and the engine is not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations

import numpy as np

from runners.locate.cause_values import activations
from runners.locate.evidence import Evidence, Experiment, Said, equal, finite, live
from runners.locate.probe_diff import Array

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


def _changes(evidence: Evidence, inputs: Mapping[str, Array]) -> Iterator[tuple[str, dict[str, Array]]]:
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
