"""What a bundle's graphs must return, call by call: values from reference vectors, dtypes from the tensor contract."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.cases import Step
from kvparity.exporter.contract.errors import TraceError
from kvparity.exporter.contract.spec import part_dtype
from kvparity.exporter.contract.vectors import LARGEST, NOISE, Vectors, cache_key, expected_outputs
from kvparity.runners.diff.budget import Noise, floor_of, noise_of
from kvparity.runners.diff.names import KINDS, axis_of, is_state, kind_of
from kvparity.runners.diff.tensor import Expectation

__all__ = ["Wanted", "auto_limits", "case_noise", "dtype_of", "fixed_limits", "recorded_dtypes", "step_expectations"]


@dataclass(frozen=True)
class Wanted:
    """What a call is judged against.

    Attributes:
        against: PyTorch's float32 or its float64 result.
        dtype: dtype of every output; None takes the contract's.
        last: Whether the call returned the logits of its last position only, where the graphs return all: recordings
            may.
        dtypes: By output kind: the float type that it was recorded in, where that is another than the contract's.
    """

    against: Literal["float32", "float64"] = "float32"
    dtype: str | None = None
    last: bool = False
    dtypes: Mapping[str, str] = field(default_factory=dict)


def dtype_of(bundle: Bundle, tensor: str) -> str:
    """The dtype that the contract gives an output: logits and recurrent states float32, other caches the bundle's."""
    return "float32" if tensor == "logits" else part_dtype(kind_of(tensor), bundle.options.dtype)


def fixed_limits(tol: float) -> dict[str, float]:
    """The same limit for every kind of output."""
    return dict.fromkeys(KINDS, tol)


def auto_limits(noise: Mapping[str, Noise], budget: float, case: str) -> dict[str, float]:
    """``budget`` times PyTorch's own float32 error on a case, by output kind.

    Raises:
        TraceError: The float64 reference of the case is not known.
    """
    if not noise:
        raise TraceError(f"case {case}: --tol auto needs float64 reference vectors; export again or add --live")
    return {kind: budget * own.effective for kind, own in noise.items()}


def case_noise(bundle: Bundle, vectors: Vectors) -> dict[str, Noise]:
    """PyTorch's own float32 error on the live slots of a case, by output kind; empty where float64 is not known.

    It is the larger of two passes: the whole sequence in one call, and in pieces, as chunks and steps add in another
    order and a model may amplify that.
    """
    if not vectors.has_float64:
        return {}
    live = vectors.case.mask.astype(bool)
    known = live if vectors.known is None else live & vectors.known
    noise: dict[str, Noise] = {}
    if vectors.noise is not None:
        found = vectors.noise[live]
        largest = float(found[:, LARGEST].max(initial=0.0))
        noise["logits"] = Noise(float(found[:, NOISE].max(initial=0.0)), floor_of(largest, dtype_of(bundle, "logits")))
    for key, delta in vectors.deltas.items():
        kind, axis = kind_of(key), axis_of(key) or 1  # states: one per call
        rows = np.moveaxis(vectors.arrays[key], axis, 1), np.moveaxis(delta, axis, 1)
        counted = np.ones(rows[0].shape[:2], bool) if is_state(key) else live if key == "logits" else known
        own = noise_of(*rows, counted, dtype_of(bundle, key))
        noise[kind] = noise[kind].merge(own) if kind in noise else own
    for key, errors in vectors.pieces.items():
        kind = kind_of(key)
        largest = float(errors[live if key == "logits" else known].max(initial=0.0))
        noise[kind] = noise[kind].merge(Noise(largest, 0.0)) if kind in noise else Noise(largest, 0.0)
    return noise


def recorded_dtypes(bundle: Bundle, found: Mapping[str, str]) -> dict[str, str]:
    """By output kind: the float type that it was recorded in, where the contract has another.

    Args:
        bundle: Says the contract's.
        found: dtype by output.
    """
    return {
        kind_of(name): dtype
        for name, dtype in found.items()
        if dtype in ("float16", "bfloat16", "float32", "float64") and dtype != dtype_of(bundle, name)
    }


def step_expectations(
    bundle: Bundle, vectors: Vectors, step: Step, limits: Mapping[str, float], wanted: Wanted
) -> list[Expectation]:
    """What one call must return.

    Args:
        bundle: Says which rows and positions its graphs return.
        vectors: The reference of the case.
        step: The call.
        limits: Largest difference that passes, by output kind.
        wanted: What to judge against.

    Raises:
        TraceError: The vectors lack a tensor that the bundle's model has.
    """
    known = {cache_key(slot.slot, part) for slot, part in bundle.model.cache_names()} | {"logits"}
    if missing := sorted(known - vectors.arrays.keys()):
        raise TraceError(f"case {vectors.case.name}: reference vectors lack {missing[0]}; export again")
    last = wanted.last or bundle.options.logits == "last"
    slots, options = bundle.model.slots, bundle.options
    values = expected_outputs(vectors.arrays, step, slots, options, last=last)
    deltas = expected_outputs(vectors.deltas, step, slots, options, last=last) if vectors.has_float64 else {}
    mask = vectors.case.mask.astype(bool)[step.which]
    sampled = np.ones_like(mask) if vectors.known is None else vectors.known[step.which]
    expectations = []
    for name, array in values.items():
        axis = axis_of(name)
        first = step.stop - (array.shape[axis] if axis else 1)
        live = np.ones((array.shape[0], step.stop - first), bool) if is_state(name) else mask[:, first : step.stop]
        expectations.append(
            Expectation(
                name=name,
                values=array,
                dtype=wanted.dtype or wanted.dtypes.get(kind_of(name)) or dtype_of(bundle, name),
                live=live,
                known=sampled[:, first : step.stop] if name.endswith((".key", ".value")) else None,
                axis=axis,
                first=first,
                limit=limits[kind_of(name)],
                delta=deltas.get(name),
                float64=wanted.against == "float64",
                noise=vectors.noise[step.which, first : step.stop]
                if name == "logits" and vectors.noise is not None
                else None,
            )
        )
    return expectations
