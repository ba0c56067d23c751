"""Plays a case through any session: builds each call's inputs and hands the caches from call to call."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, cast

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.cases import Case, Step
from kvparity.exporter.contract.errors import TraceError
from kvparity.exporter.contract.vectors import Vectors, expected_pasts
from kvparity.runners.base import Array, CaseSession, Session
from kvparity.runners.decode.earlier import Earlier

__all__ = ["Player", "StepResult", "open_player", "play"]


@dataclass(frozen=True, eq=False)
class StepResult:
    """One step and what came back: ``logits`` and ``present.N.key/value`` in the dynamic layout's shapes."""

    step: Step
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


class Player(Protocol):
    """How one layout plays steps and carries caches between them; a layout is one class in ``runners/layouts``."""

    def run(self, session: Session, step: Step, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Play one step through one or more calls.

        Args:
            session: An open session.
            step: Which slots, through which graph; a step that starts at slot 0 starts a new conversation.
            inputs: ``input_ids``, ``attention_mask`` and ``position_ids`` of the step, as the dynamic layout takes.

        Returns:
            ``logits`` and ``present.N.key/value`` in the dynamic layout's names and shapes.

        Raises:
            TraceError: The step does not fit the layout, or a cache that it needs was not returned.
        """
        ...

    def restore(self, total: int, caches: Mapping[str, Array]) -> None:
        """Go on with these caches of ``total`` slots, by input name in the dynamic layout's shapes."""
        ...


def open_player(bundle: Bundle, session: Session, *, poison: bool = False) -> Player:
    """The player of a session's layout: the bundle's, unless the session says that it takes another.

    Args:
        bundle: The bundle that the session runs.
        session: An open session.
        poison: Static layout: fill rows that must not be read with NaN.

    Raises:
        TraceError: No player exists for the layout.
    """
    layout = session.info.layout or bundle.options.layout
    try:
        module = importlib.import_module(f"kvparity.runners.decode.layouts.{layout}")
    except ModuleNotFoundError as error:
        raise TraceError(f"{bundle.root}: layout {layout!r} cannot be played") from error
    extra = {"poison": True} if poison else {}
    return cast(Player, module.Player(bundle.model, bundle.options, **extra))


def play(
    bundle: Bundle, session: Session, case: Case, *, caches_from: Vectors | None = None, poison: bool = False
) -> Iterator[StepResult]:
    """Play a case step by step, or replay a recording of it; results come one by one, since a long case is large.

    Args:
        bundle: The bundle that the session runs.
        session: An open session.
        case: What to play.
        caches_from: Feed every step with these recorded caches instead of the session's own, so that an error in one
            step cannot spread to the next.
        poison: Static layout: fill cache rows that a call must not read with NaN.

    Raises:
        TraceError: A cache that the next step needs was not returned, or the case does not fit the layout.
    """
    if isinstance(session, CaseSession):  # a recording: nothing is fed, so nothing has to be carried
        session.begin(case)
        for step in case.steps():
            inputs = dict(case.inputs(step))
            yield StepResult(step, inputs, session.run(step.graph, inputs))
        return
    player = open_player(bundle, session, poison=poison)
    earlier = Earlier(bundle.model, bundle.options, case)
    for step in case.steps():
        inputs = dict(case.inputs(step))
        try:
            if caches_from is not None and step.start:
                clean = expected_pasts(caches_from.arrays, case, step, bundle.model.slots, bundle.options)
                player.restore(step.start, clean)
            elif step.past:
                player.restore(step.start, earlier.past(step))
            outputs = player.run(session, step, inputs)
        except TraceError as error:
            raise TraceError(f"case {case.name}: {error}") from error
        yield StepResult(step, inputs, outputs)
        if caches_from is None:
            earlier.add(step, outputs)
