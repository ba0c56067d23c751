"""Plays a case through any session: builds each call's inputs and hands the caches from call to call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from exporter.bundle import Bundle
from exporter.cases import Case, Step
from exporter.errors import TraceError
from exporter.spec import DECODE, ExportOptions, ModelSpec, past_name, present_name
from exporter.vectors import Vectors, expected_outputs
from runners.base import Array, CaseSession, Session

__all__ = ["CacheHandoff", "DynamicHandoff", "StepResult", "numpy_dtype", "play"]


@dataclass(frozen=True, eq=False)
class StepResult:
    """One call and what came back: ``logits`` and ``present.N.key/value`` in the dynamic layout's shapes."""

    step: Step
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


class CacheHandoff(Protocol):
    """How one layout carries caches from call to call; a layout is one class with these two functions."""

    def feeds(self, case: Case, step: Step) -> dict[str, Array]:
        """Inputs of a call beyond ids, mask and positions."""
        ...

    def absorb(self, case: Case, step: Step, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Take the outputs of a call; return them in the dynamic layout's names and shapes."""
        ...


def numpy_dtype(name: str) -> np.dtype[np.generic]:
    """Numpy dtype of a port's dtype name, bfloat16 included."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


class DynamicHandoff:
    """Dynamic layout: ``present`` of one call is ``past_key_values`` of the next; the first past has no rows."""

    def __init__(self, model: ModelSpec, options: ExportOptions) -> None:
        self._model, self._dtype = model, numpy_dtype(options.dtype)
        self._past: dict[str, Array] = {}

    def feeds(self, case: Case, step: Step) -> dict[str, Array]:
        """The pasts of a decode call; nothing for a prefill call.

        Raises:
            TraceError: The call before did not return a cache that this one needs.
        """
        if step.graph != DECODE:
            return {}
        if step.index == 0:
            return {
                past_name(slot.slot, part): np.zeros((case.batch, slot.kv_heads, 0, slot.dim(part)), self._dtype)
                for slot, part in self._model.cache_names()
            }
        missing = [
            present_name(slot.slot, part)
            for slot, part in self._model.cache_names()
            if past_name(slot.slot, part) not in self._past
        ]
        if missing:
            raise TraceError(
                f"case {case.name}: step {step.index - 1} did not return {missing[0]}; the case stops here"
            )
        return dict(self._past)

    def absorb(self, case: Case, step: Step, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Keep every present as the next past."""
        self._past = {
            past_name(slot.slot, part): outputs[present_name(slot.slot, part)]
            for slot, part in self._model.cache_names()
            if present_name(slot.slot, part) in outputs
        }
        return dict(outputs)


def handoff(bundle: Bundle) -> CacheHandoff:
    """The cache hand-off of a bundle's layout.

    Raises:
        TraceError: The layout has none.
    """
    if bundle.options.layout == "dynamic":
        return DynamicHandoff(bundle.model, bundle.options)
    raise TraceError(f"{bundle.root}: layout {bundle.options.layout!r} cannot be played; expected dynamic")


def play(bundle: Bundle, session: Session, case: Case, *, caches_from: Vectors | None = None) -> Iterator[StepResult]:
    """Play a case call by call; results are yielded as they come, so that a long case need not fit in memory.

    Args:
        bundle: The bundle that the session runs.
        session: An open session.
        case: What to play.
        caches_from: Feed every call with these recorded caches instead of the session's own, so that an error in one
            call cannot spread to the next.

    Raises:
        TraceError: A cache that the next call needs was not returned.
    """
    carrier = handoff(bundle)
    if isinstance(session, CaseSession):
        session.begin(case)
    for step in case.steps():
        feeds: dict[str, Array] = {**case.inputs(step), **carrier.feeds(case, step)}
        outputs = carrier.absorb(case, step, session.run(step.graph, feeds))
        yield StepResult(step, feeds, outputs)
        if caches_from is not None:
            clean = expected_outputs(caches_from.arrays, step, bundle.model.slots, bounded=bundle.options.bounded)
            carrier.absorb(case, step, clean)
