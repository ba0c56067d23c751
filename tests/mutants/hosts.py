"""Faults of a host that goes back or moves rows: its graphs are right, and what it feeds them with is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from kvparity.exporter.contract.cases import Case, Step
from kvparity.exporter.contract.spec import GraphKind
from kvparity.runners.base import Array
from tests.mutants.recording import RecordingEngine

__all__ = ["HOSTS", "FaultyHost", "HostFault"]

Feeds = dict[str, Array]


@dataclass(frozen=True)
class HostFault:
    """One fault of a host.

    Attributes:
        name: Short and unique.
        what: The fault in words.
        case: A case that shows it.
        where: Glob pattern of the value that locating a recording of it names.
        edit: Changes what a call is fed with; gets the step, the right feeds, and those and the outputs of each call
            before it.
        probes: Whether values from inside are recorded: not where the fault gives them other shapes.
    """

    name: str
    what: str
    case: str
    where: str
    edit: Callable[[Step, Feeds, list[tuple[Feeds, Feeds]]], Feeds]
    probes: bool = True


class FaultyHost:
    """A session whose host has a fault; it plays one case, once."""

    def __init__(self, inner: RecordingEngine, fault: HostFault, case: Case) -> None:
        self._inner, self._fault, self.info = inner, fault, inner.info
        self._steps, self._done = list(case.steps()), list[tuple[Feeds, Feeds]]()

    def run(self, graph: GraphKind, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one call with what the host feeds."""
        step = self._steps[len(self._done)]
        feeds = self._fault.edit(step, dict(inputs), self._done) if step.start else dict(inputs)
        outputs = self._inner.run(graph, feeds)
        if not self._fault.probes:
            self._inner.inside = {}
        self._done.append((feeds, outputs))
        return outputs

    def close(self) -> None:
        """Close the session."""
        self._inner.close()


def _goes_back(step: Step, done: list[tuple[Feeds, Feeds]]) -> int:
    """Tokens that the caches of the call before this one hold beyond its start."""
    return done[-1][0]["attention_mask"].shape[1] - step.start if done else 0


def _positions_kept(step: Step, feeds: Feeds, done: list[tuple[Feeds, Feeds]]) -> Feeds:
    back = max(_goes_back(step, done), 0)
    return {**feeds, "position_ids": feeds["position_ids"] + back}


def _rejected_kept(step: Step, feeds: Feeds, done: list[tuple[Feeds, Feeds]]) -> Feeds:
    """Caches as the draft left them, mask and all."""
    back = _goes_back(step, done)
    if back <= 0 or len(done[-1][0]["input_ids"]) != len(feeds["input_ids"]):
        return feeds
    mask = np.pad(feeds["attention_mask"], ((0, 0), (0, back)), constant_values=1)
    return {**feeds, **{name: done[-1][1][_present(name)] for name in _pasts(feeds)}, "attention_mask": mask}


def _one_more_dropped(step: Step, feeds: Feeds, done: list[tuple[Feeds, Feeds]]) -> Feeds:
    """The last accepted token's row is dropped with the rejected ones; the one before it stands there again."""
    if _goes_back(step, done) <= 0:
        return feeds
    shifted = {
        name: np.concatenate([feeds[name][:, :, :-1], feeds[name][:, :, -2:-1]], axis=2) for name in _pasts(feeds)
    }
    return {**feeds, **shifted}


def _ring_short(step: Step, feeds: Feeds, done: list[tuple[Feeds, Feeds]]) -> Feeds:
    """The oldest row that a sliding layer still sees was overwritten by the newest rejected one."""
    if _goes_back(step, done) <= 0:
        return feeds
    made = dict(feeds)
    for name in _pasts(feeds):
        if feeds[name].shape[2] < step.start:  # a full slot has a row for every token
            made[name] = feeds[name].copy()
            made[name][:, :, 0] = done[-1][1][_present(name)][:, :, -1]
    return made


def _values_stay(step: Step, feeds: Feeds, done: list[tuple[Feeds, Feeds]]) -> Feeds:
    """Beams are reordered in keys and not in values."""
    before = [name for name in _pasts(feeds) if name.endswith("value") and step.past]
    rows = [row for row, _ in enumerate(step.past)]
    order = np.argsort([place for _, place in step.past], kind="stable") if step.past else rows
    return {**feeds, **{name: feeds[name][order] for name in before}}


def _last_state(step: Step, feeds: Feeds, done: list[tuple[Feeds, Feeds]]) -> Feeds:
    """The state after the whole draft instead of the one before it."""
    if not step.past or step.past[0][0] == step.index - 1 or len(step.past) > 1:
        return feeds
    states = [name for name in _pasts(feeds) if not name.endswith(("key", "value"))]
    return {**feeds, **{name: done[-1][1][_present(name)] for name in states}}


def _pasts(feeds: Feeds) -> list[str]:
    return [name for name in feeds if name.startswith("past_key_values.")]


def _present(name: str) -> str:
    return name.replace("past_key_values", "present")


HOSTS = (
    HostFault(
        "positions-kept",
        "positions go on from the rejected tokens",
        "rewind-past",
        "rotary_emb*|*query",
        _positions_kept,
    ),
    HostFault(
        "rejected-kept",
        "caches and mask still show rejected rows",
        "rewind-past",
        "present.*",
        _rejected_kept,
        probes=False,
    ),
    HostFault(
        "one-more-dropped", "one row too many is dropped", "rewind-past", "*key|*value|present.*", _one_more_dropped
    ),
    HostFault(
        "ring-short", "a ring one row short: the oldest row is a rejected one", "rewind-past", "*key", _ring_short
    ),
    HostFault("values-stay", "beams change places in keys, not in values", "reorder", "*value", _values_stay),
    HostFault("last-state", "the state after the draft, not before it", "replay", "present.*", _last_state),
)
