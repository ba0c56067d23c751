"""Cases: seeded token sequences and how they are cut into calls, made so that the window is crossed every way.

Standard library and numpy only: the same cases are used by the exporter, the runners and other people's engines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvparity.exporter.contract.spec import DECODE, PREFILL, GraphKind, ModelSpec

__all__ = ["Case", "Step", "default_cases", "left_padded", "seeded_tokens"]

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Step:
    """One call: tokens ``start`` to ``stop`` of a case through one graph.

    Attributes:
        index: Number of the call in its case, from 0.
        graph: Which graph is called.
        start: First slot of this call; equally the number of slots before it.
        stop: One past the last slot.
    """

    index: int
    graph: GraphKind
    start: int
    stop: int

    @property
    def tokens(self) -> int:
        """Tokens that this call carries."""
        return self.stop - self.start


@dataclass(frozen=True, eq=False)
class Case:
    """A token sequence per batch row, cut into calls.

    Attributes:
        name: Short and unique within a bundle.
        tokens: (batch, total) int64; padded slots hold the pad token.
        chunks: Tokens of each call; they add up to ``total``.
        pads: Left-padded slots of each row.
        first: Graph of the first call; every later call goes to the decode graph.
        why: What the case is there to catch.
    """

    name: str
    tokens: IntArray
    chunks: tuple[int, ...]
    pads: tuple[int, ...]
    first: GraphKind = PREFILL
    why: str = ""

    def __post_init__(self) -> None:
        batch, total = self.tokens.shape
        if sum(self.chunks) != total or min(self.chunks, default=0) < 1:
            raise ValueError(f"case {self.name}: chunks {self.chunks} do not add up to {total} tokens")
        if len(self.pads) != batch or not all(0 <= pad < total for pad in self.pads):
            raise ValueError(f"case {self.name}: pads {self.pads} do not fit {batch} rows of {total} slots")

    @property
    def batch(self) -> int:
        """Rows of the batch."""
        return int(self.tokens.shape[0])

    @property
    def total(self) -> int:
        """Slots after the last call."""
        return int(self.tokens.shape[1])

    @property
    def mask(self) -> IntArray:
        """(batch, total) int64: 1 where a slot is live, 0 where it is padding."""
        slots = np.arange(self.total)[None, :]
        return (slots >= np.asarray(self.pads)[:, None]).astype(np.int64)

    @property
    def positions(self) -> IntArray:
        """(batch, total) int64: rotary position of each slot, 0 at the first live one and on padding."""
        return np.maximum(np.cumsum(self.mask, axis=1) - 1, 0).astype(np.int64)

    def steps(self) -> Iterator[Step]:
        """The calls in order."""
        start = 0
        for index, tokens in enumerate(self.chunks):
            graph = self.first if index == 0 else DECODE
            yield Step(index, graph, start, start + tokens)
            start += tokens

    def inputs(self, step: Step) -> dict[str, IntArray]:
        """``input_ids``, ``attention_mask`` and ``position_ids`` of one call; the mask covers the whole history."""
        span = slice(step.start, step.stop)
        return {
            "input_ids": np.ascontiguousarray(self.tokens[:, span]),
            "attention_mask": np.ascontiguousarray(self.mask[:, : step.stop]),
            "position_ids": np.ascontiguousarray(self.positions[:, span]),
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


class _Schedule:
    """Builds the cases of one model; each gets its own seed, so that adding one does not change the others."""

    def __init__(self, spec: ModelSpec, text: Sequence[int], limit: int) -> None:
        self.spec, self.text, self.limit = spec, text, limit
        self.cases: list[Case] = []

    def add(self, name: str, chunks: Sequence[int], why: str, *, first: GraphKind = PREFILL) -> None:
        """Add a single-row case unless it is longer than the model's positions or the caller's limit."""
        if sum(chunks) > self.limit or min(chunks) < 1 or any(case.name == name for case in self.cases):
            return
        seed = int.from_bytes(name.encode(), "little") % (2**32)
        tokens = seeded_tokens(self.spec, sum(chunks), seed)
        self.cases.append(Case(name, tokens, tuple(chunks), (0,), first, why))

    def add_tokens(self, name: str, tokens: Sequence[int], chunks: Sequence[int], why: str) -> None:
        """Add a single-row case of given tokens."""
        if len(tokens) <= self.limit and len(tokens) == sum(chunks):
            self.cases.append(Case(name, np.asarray([tokens], np.int64), tuple(chunks), (0,), PREFILL, why))

    def add_batch(self, name: str, chunks: Sequence[int], pads: Sequence[int], why: str) -> None:
        """Add a ragged batch, left-padded."""
        if sum(chunks) > self.limit or max(pads) >= sum(chunks):
            return
        tokens = seeded_tokens(self.spec, sum(chunks), 7 + len(self.cases), batch=len(pads))
        padded = left_padded(self.spec, tokens, pads)
        self.cases.append(Case(name, padded, tuple(chunks), tuple(pads), PREFILL, why))


def default_cases(
    spec: ModelSpec, text: Sequence[int] = (), limit: int | None = None, rows: int | None = None
) -> tuple[Case, ...]:
    """The position schedule of a model: every way that prefill, chunks and decode steps can meet the window.

    Args:
        spec: The model; its smallest window W sets the lengths (64 is used where every layer is full).
        text: Token ids of real text, for the case that uses it.
        limit: Longest case in tokens; where None, what the window needs, at least 1,000; never past ``max_position``.
        rows: Rows of the layout's buffers, which no case may be longer than.

    Returns:
        Cases in order of cost; a case longer than ``limit`` is left out.
    """
    window = spec.window or 64
    limit = min(limit or _default_limit(window), spec.max_position, rows or spec.max_position)
    plan = _Schedule(spec, text, limit)
    _prefill_cases(plan, window, limit)
    _decode_cases(plan, window)
    _chunk_cases(plan, window)
    _batch_cases(plan, window)
    _token_cases(plan, window)
    return tuple(plan.cases)


def _default_limit(window: int) -> int:
    """Long enough for three chunks beyond a window of up to 512, and for one prefill of 2W + 3 beyond larger ones."""
    return max(1000, 3 * (window + 1) if window <= 512 else 2 * window + 8)


def _prefill_cases(plan: _Schedule, window: int, limit: int) -> None:
    for length in (1, 2, window - 1, window, window + 1, 2 * window + 3):
        plan.add(f"prefill-{length}", [length], f"one prefill of {length} tokens, window {window}")
    plan.add(f"prefill-{limit}", [limit], "one long prefill, near the last position")


def _decode_cases(plan: _Schedule, window: int) -> None:
    half = max(window // 2, 1)
    steps = min(2 * window - half, 192)
    start = max(half, window - steps // 2)
    plan.add("decode-across", [start] + [1] * steps, "token by token from below the window to beyond it")
    for length in (window - 1, window, window + 1):
        plan.add(f"handoff-{length}", [length, 1, 1, 1], f"prefill of {length}, then decode: the cache just fills")
    plan.add("decode-only", [1] * 12, "the decode graph alone, from an empty cache", first=DECODE)
    plan.add("decode-far", [max(plan.limit - 8, 1)] + [1] * 8, "decode near the last position")


def _chunk_cases(plan: _Schedule, window: int) -> None:
    plan.add("chunk-1", [1] * 10, "chunks of one token from the first on")
    plan.add("chunk-7", [7] * (2 * window // 7 + 2) if window <= 64 else [window - 20] + [7] * 8, "chunks of seven")
    for length in (window - 1, window, window + 1):
        plan.add(f"chunk-{length}", [length] * 3, f"three chunks of {length}")
    plan.add("chunk-cross", [window + 9, window + 5], "two chunks that both cross the window")
    plan.add("chunk-empty", [window + 3, 4, 1], "the decode graph takes the first chunk too", first=DECODE)


def _batch_cases(plan: _Schedule, window: int) -> None:
    long = 2 * window + 5
    plan.add_batch("batch-ragged", [long, 1, 1, 1], (0, 3, window, long - 2), "ragged rows, left-padded, then decode")
    plan.add_batch("batch-chunks", [8, window, 9, 1, 1], (0, 5, 12), "a row's first chunk is padding only")


def _token_cases(plan: _Schedule, window: int) -> None:
    last = plan.spec.vocab_size - 1
    special = {plan.spec.bos_token_id, plan.spec.pad_token_id, *plan.spec.eos_token_ids, 0, 1, last - 1, last}
    ids = sorted(token for token in special if token is not None and 0 <= token <= last)
    plan.add_tokens("special-tokens", ids * 3, [len(ids) * 3], "special tokens and both ends of the vocabulary")
    _text_cases(plan, window)


def _text_cases(plan: _Schedule, window: int) -> None:
    """Real text, which real models need: random ids drive them far outside of what they were trained on."""
    text = plan.text
    half = max(window // 2, 1)
    shapes = {
        "text": ([window + 36, 1, 1, 1, 1], "real text, past the window, then decode"),
        "text-prefill": ([2 * window + 3], "one prefill of real text, more than twice the window"),
        "text-across": ([max(window - 8, 1)] + [1] * 24, "real text token by token across the window"),
        "text-chunks": ([window + 9, window + 5, half], "chunks of real text that cross the window"),
    }
    start = 0
    for name, (chunks, why) in shapes.items():
        tokens = (*text[:1], *text[start + 1 : start + sum(chunks)])
        if start + sum(chunks) <= len(text):
            plan.add_tokens(name, tokens, chunks, why)
        start += half
