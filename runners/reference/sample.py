"""What of a sequence is recorded: logits or the hidden states that they are rebuilt from, and which cache rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kvparity.exporter.contract.cases import IntArray
from kvparity.exporter.contract.spec import ModelSpec

__all__ = ["Planned", "Sample", "plan_samples"]

_NEAR = 2  # rows on either side of an edge


@dataclass(frozen=True, eq=False)
class Planned:
    """A sequence to record.

    Attributes:
        name: Its name.
        tokens: (total,).
        chunks: Tokens of each call of the reference's pass.
        edges: Slots where a call of a case begins or ends.
    """

    name: str
    tokens: IntArray
    chunks: tuple[int, ...]
    edges: frozenset[int]


@dataclass(frozen=True, eq=False)
class Sample:
    """What is kept of a sequence.

    Attributes:
        rows: Slots of the cache rows.
        stride: Of the rows between edges; 1 where all are kept.
    """

    rows: IntArray
    stride: int = 1


def plan_samples(model: ModelSpec, planned: Sequence[Planned], row_bytes: int, budget: int) -> dict[str, Sample]:
    """Cache rows to keep: all where the budget allows, else those at the edges and every n-th.

    Rows around slot 0, W and 2W of every window and around the end are always kept, then as many call edges as fit.

    Args:
        model: For its windows.
        planned: The sequences.
        row_bytes: Bytes of one cache row of all slots, float64 difference included.
        budget: Bytes of all rows.
    """
    most = max(budget // max(row_bytes, 1), 1)
    if sum(len(item.tokens) for item in planned) <= most:
        return {item.name: Sample(np.arange(len(item.tokens))) for item in planned}
    windows = {slot.window for slot in model.slots if slot.window is not None}
    fixed = {item.name: _near({0, len(item.tokens), *_multiples(windows)}, len(item.tokens)) for item in planned}
    edges = {item.name: _near(item.edges, len(item.tokens)) | fixed[item.name] for item in planned}
    longest = max(len(item.tokens) for item in planned)
    for stride in range(2, longest + 1):
        if sum(len(edges[item.name] | set(range(0, len(item.tokens), stride))) for item in planned) <= most:
            break
    chosen = {item.name: edges[item.name] | set(range(0, len(item.tokens), stride)) for item in planned}
    thin = 1
    while sum(map(len, chosen.values())) > most and thin < longest:
        thin *= 2
        chosen = {name: fixed[name] | set(sorted(edges[name])[::thin]) for name in chosen}
    return {name: Sample(np.asarray(sorted(rows), np.int64), stride) for name, rows in chosen.items()}


def _multiples(windows: set[int]) -> set[int]:
    return {times * window for window in windows for times in (1, 2)}


def _near(slots: Mapping[int, object] | set[int] | frozenset[int], total: int) -> set[int]:
    """Slots at most :data:`_NEAR` away."""
    near = {slot + offset for slot in slots for offset in range(-_NEAR, _NEAR + 1)}
    return {slot for slot in near if 0 <= slot < total}
