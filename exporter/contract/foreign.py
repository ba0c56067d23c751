"""Graphs that somebody else exported, in a manifest: whose port stands for which of ours, and what was measured.

An *adopted* bundle holds another exporter's files untouched. Its graphs keep their own port names; this is how a call
in the names and shapes of :mod:`exporter.contract.ports` becomes a call of such a graph, and back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from kvparity.exporter.contract.spec import GraphKind

__all__ = ["ExtraInput", "Foreign", "ForeignGraph", "Offer"]

ExtraKind = Literal["constant", "cache_position", "past_lengths", "last_slots", "total"]


@dataclass(frozen=True)
class ExtraInput:
    """An input that our contract does not have, and what it is fed with.

    Attributes:
        name: The graph's own name.
        kind: ``constant``; ``cache_position``: slots of this call's tokens, (sequence,); ``past_lengths``: tokens
            before this call, per row; ``last_slots``: tokens so far less one, per row (GroupQueryAttention's
            ``seqlens_k``); ``total``: tokens so far.
        dtype: numpy's name.
        shape: Of a constant; of the others, the axes that the graph declares: ``batch``, ``sequence`` or a number.
        value: Of a constant.
    """

    name: str
    kind: ExtraKind
    dtype: str
    shape: tuple[int | str, ...] = ()
    value: float = 0.0


@dataclass(frozen=True)
class ForeignGraph:
    """How one graph of our contract is played by a foreign one.

    Attributes:
        run: The graph of the bundle that plays it: a merged graph plays a prefill too.
        inputs: Our port to the graph's own input, where it has it.
        outputs: Our port to the graph's own output.
        extra: Its further inputs.
        empty_rows: Rows of zeros that stand for an empty past; 0 where it takes none.
        rows_first: Cache axes are (batch, rows, kv_heads, head_dim) instead of (batch, kv_heads, rows, head_dim).
        buffers: Own ports of caches that lie in buffers of fixed size, past and present, with their rows: the newest
            rows are the first min(tokens, rows) ones (GroupQueryAttention's ``sliding_window_cache``).
    """

    run: GraphKind
    inputs: dict[str, str]
    outputs: dict[str, str]
    extra: tuple[ExtraInput, ...] = ()
    empty_rows: int = 0
    rows_first: bool = False
    buffers: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Offer:
    """One thing that a package was seen to do, or not to do.

    Attributes:
        name: Such as ``several tokens after a past``.
        offered: What is not offered is not judged, and said so; it is no fault.
        found: What was measured, or why it is not offered.
    """

    name: str
    offered: bool
    found: str


@dataclass(frozen=True)
class Foreign:
    """Whose package it is and what its graphs do.

    Attributes:
        kind: Kind of package, a file in ``runners/adopt/kinds``.
        graphs: Our graphs, each played by one of the package's.
        offers: What was measured by running it.
        extra_rows: Rows beyond window - 1 that sliding caches keep; the oldest are not compared.
    """

    kind: str
    graphs: dict[GraphKind, ForeignGraph]
    offers: tuple[Offer, ...] = ()
    extra_rows: int = 0

    def offers_it(self, name: str) -> bool:
        """Whether the package does something; False for what was not measured."""
        return any(offer.name == name and offer.offered for offer in self.offers)
