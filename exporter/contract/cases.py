"""Cases: token sequences and how they are cut into calls.

Most cases are cuts of a few master sequences: what a causal model computes at a position depends on the tokens up to
it alone, so that one recorded pass over a sequence is the reference of every case that begins with the same tokens.

In a plain case every call carries all rows and continues the call before it. A case with moves says of each call
which rows it carries, where it starts and whose caches it continues: rejected tokens, reordered beams, rows that leave
or join a batch and saved caches are all that.

Standard library and numpy only: the same cases are used by the exporter, the runners and other people's engines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from kvparity.exporter.contract.spec import DECODE, PREFILL, GraphKind, ModelSpec

__all__ = ["Case", "Move", "Step", "left_padded", "master_of", "masters", "seeded_tokens"]

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Move:
    """Where a call continues, where that is not every row at the end of the call before it.

    Attributes:
        start: First slot of the call; 0 begins a conversation.
        rows: The case's rows that the call carries, in the order of its batch.
        past: For each of them an earlier call, and the row of that call's batch, whose caches it continues: their rows
            of the ``start`` slots before this call, older ones from what that call was given. Slots shift with the
            padding. Empty: the caches in hand, their newest rows dropped where they go beyond ``start``.
    """

    start: int
    rows: tuple[int, ...]
    past: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Step:
    """One call: tokens ``start`` to ``stop`` of a case through one graph.

    Attributes:
        index: Number of the call in its case, from 0.
        graph: Which graph is called.
        start: First slot of this call; equally the number of slots before it.
        stop: One past the last slot.
        reached: Slots that the caches in hand came to; more than ``start`` where their newest rows are dropped.
        rows: The case's rows that it carries; empty where it carries all.
        past: See :class:`Move`.
    """

    index: int
    graph: GraphKind
    start: int
    stop: int
    reached: int = 0
    rows: tuple[int, ...] = ()
    past: tuple[tuple[int, int], ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens that this call carries."""
        return self.stop - self.start

    @property
    def peak(self) -> int:
        """Slots that the caches in hand came to, this call included."""
        return max(self.reached, self.stop)

    @property
    def which(self) -> slice | list[int]:
        """Index of its rows in an array of the whole case."""
        return list(self.rows) if self.rows else slice(None)


@dataclass(frozen=True, eq=False)
class Case:
    """A token sequence per row, cut into calls.

    Attributes:
        name: Short and unique within a bundle.
        tokens: (rows, total) int64; padded slots hold the pad token. Without moves, the rows are those of the batch.
        chunks: Tokens of each call; without moves they add up to ``total``.
        pads: Left-padded slots of each row.
        first: Graph of a call that begins a conversation; every other call goes to the decode graph.
        why: What the case is there to catch.
        moves: One per call; empty where every call carries all rows and continues the call before it.
        drawn: Whether its tokens are random, so that others would do.
    """

    name: str
    tokens: IntArray
    chunks: tuple[int, ...]
    pads: tuple[int, ...]
    first: GraphKind = PREFILL
    why: str = ""
    moves: tuple[Move, ...] = ()
    drawn: bool = False

    def __post_init__(self) -> None:
        batch, total = self.tokens.shape
        if (not self.moves and sum(self.chunks) != total) or min(self.chunks, default=0) < 1:
            raise ValueError(f"case {self.name}: chunks {self.chunks} do not add up to {total} tokens")
        if len(self.pads) != batch or not all(0 <= pad < total for pad in self.pads):
            raise ValueError(f"case {self.name}: pads {self.pads} do not fit {batch} rows of {total} slots")
        if self.moves:
            self._check_moves()

    def _check_moves(self) -> None:
        """Every call continues caches of the same tokens.

        Raises:
            ValueError: One does not, or names a row or a call that is not there.
        """
        if len(self.moves) != len(self.chunks):
            raise ValueError(f"case {self.name}: {len(self.moves)} moves for {len(self.chunks)} calls")
        seen: list[Step] = []
        for step in self.steps():
            past = step.past or tuple((step.index - 1, row) for row in range(len(step.rows)) if step.start)
            bad = not step.rows or step.stop > self.total or not all(0 <= row < len(self.pads) for row in step.rows)
            bad |= bool(step.start) != bool(past) or (bool(past) and len(past) != len(step.rows))
            bad |= not step.past and bool(past) and len(seen[-1].rows) != len(step.rows)
            for row, (call, place) in zip(step.rows, past if not bad else (), strict=False):
                source = seen[call] if 0 <= call < len(seen) and place < len(seen[call].rows) else None
                bad |= source is None or not self._continues(step, row, source, place)
            if bad:
                raise ValueError(f"case {self.name}: call {step.index} does not continue the calls that it names")
            seen.append(step)

    def _continues(self, step: Step, row: int, source: Step, place: int) -> bool:
        """Whether a row's tokens before a call are those that an earlier call's caches hold."""
        other = source.rows[place]
        shift = self.pads[row] - self.pads[other]
        before, there = (
            self.tokens[row, self.pads[row] : step.start],
            self.tokens[other, self.pads[other] : source.stop],
        )
        fits = shift >= 0 if step.past else shift == 0
        return fits and len(before) <= len(there) and np.array_equal(before, there[: len(before)])

    @property
    def batch(self) -> int:
        """Rows of the case."""
        return int(self.tokens.shape[0])

    @property
    def width(self) -> int:
        """Rows of the widest call."""
        return max((len(move.rows) for move in self.moves), default=self.batch)

    @property
    def joins_several(self) -> bool:
        """Whether a batch of several rows takes several tokens after a past."""
        return any(step.start and step.tokens > 1 < len(self.seen_by(step).pads) for step in self.steps())

    @property
    def total(self) -> int:
        """Slots of the longest row."""
        return int(self.tokens.shape[1])

    @property
    def mask(self) -> IntArray:
        """(rows, total) int64: 1 where a slot is live, 0 where it is padding."""
        slots = np.arange(self.total)[None, :]
        return (slots >= np.asarray(self.pads)[:, None]).astype(np.int64)

    @property
    def positions(self) -> IntArray:
        """(rows, total) int64: rotary position of each slot, 0 at the first live one and on padding."""
        return np.maximum(np.cumsum(self.mask, axis=1) - 1, 0).astype(np.int64)

    def row(self, index: int) -> IntArray:
        """(total - pad,) int64: the tokens of one row without its padding."""
        return self.tokens[index, self.pads[index] :]

    def steps(self) -> Iterator[Step]:
        """The calls in order."""
        if self.moves:
            yield from self._moved()
            return
        start = 0
        for index, tokens in enumerate(self.chunks):
            graph = self.first if index == 0 else DECODE
            yield Step(index, graph, start, start + tokens)
            start += tokens

    def _moved(self) -> Iterator[Step]:
        peak = 0
        for index, (tokens, move) in enumerate(zip(self.chunks, self.moves, strict=True)):
            if move.past or not move.start:  # other caches than those in hand
                peak = move.start
            graph = DECODE if move.start else self.first
            reached = peak if peak > move.start else 0
            yield Step(index, graph, move.start, move.start + tokens, reached, move.rows, move.past)
            peak = max(peak, move.start + tokens)

    def sources(self, step: Step) -> list[tuple[int, int]]:
        """For each row of a call that continues others: the call and the case's row whose caches it continues."""
        if not self.moves:
            return [(step.index - 1, row) for row in range(self.batch)]
        rows = [move.rows for move in self.moves]
        past = step.past or tuple((step.index - 1, place) for place in range(len(step.rows)))
        return [(call, rows[call][place]) for call, place in past]

    def ends(self, row: int) -> frozenset[int]:
        """Tokens of a row after which a call that it goes through ended, counted without padding."""
        steps = list(self.steps())
        todo = {(step.index, row) for step in steps if not step.rows or row in step.rows}
        done: set[tuple[int, int]] = set()
        while todo:
            index, own = todo.pop()
            done.add((index, own))
            step = steps[index]
            if step.start:
                todo |= {self.sources(step)[step.rows.index(own) if step.rows else own]} - done
        return frozenset(steps[index].stop - self.pads[own] for index, own in done)

    def seen_by(self, step: Step) -> Case:
        """The rows that a call carries, as a case of one call."""
        if not step.rows:
            return self
        tokens = self.tokens[step.which]
        pads = tuple(self.pads[row] for row in step.rows)
        return replace(self, tokens=tokens, chunks=(self.total,), pads=pads, moves=())

    def inputs(self, step: Step) -> dict[str, IntArray]:
        """``input_ids``, ``attention_mask`` and ``position_ids`` of one call; the mask covers the whole history."""
        rows, span = step.which, slice(step.start, step.stop)
        return {
            "input_ids": np.ascontiguousarray(self.tokens[rows, span]),
            "attention_mask": np.ascontiguousarray(self.mask[rows, : step.stop]),
            "position_ids": np.ascontiguousarray(self.positions[rows, span]),
        }


def seeded_tokens(spec: ModelSpec, total: int, seed: int, batch: int = 1) -> IntArray:
    """Uniform random token ids, (batch, total); the first of each row is bos where the model has one."""
    tokens = np.random.default_rng(seed).integers(0, spec.vocab_size, size=(batch, total), dtype=np.int64)
    if spec.bos_token_id is not None:
        tokens[:, 0] = spec.bos_token_id
    return tokens


def left_padded(spec: ModelSpec, tokens: IntArray, pads: Sequence[int]) -> IntArray:
    """Shift each row right by its padding: row r holds its first ``total - pads[r]`` tokens after the pad tokens."""
    padded = np.full_like(tokens, spec.pad_token_id or 0)
    for row, pad in enumerate(pads):
        padded[row, pad:] = tokens[row, : tokens.shape[1] - pad]
    return padded


def masters(cases: Sequence[Case]) -> dict[str, IntArray]:
    """The fewest sequences that the rows of these cases begin, longest first, named after a case that needs all.

    Returns:
        (tokens,) int64 by name; a row of ``n`` tokens is the first ``n`` of the first one that begins with them.
    """
    rows = [(case, row) for case in cases for row in range(case.batch)]
    found: dict[str, IntArray] = {}
    for case, row in sorted(rows, key=lambda item: -len(item[0].row(item[1]))):
        tokens = case.row(row)
        if master_of(tokens, found) is None:
            name = case.name if case.name not in found else f"{case.name}-row-{row}"
            found[name] = tokens
    return found


def master_of(tokens: IntArray, known: Mapping[str, IntArray]) -> str | None:
    """Name of the first sequence that begins with these tokens; None where none does."""
    fits = (name for name, master in known.items() if np.array_equal(master[: len(tokens)], tokens))
    return next(fits, None)
