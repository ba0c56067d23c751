"""Cases: token sequences and how they are cut into calls, made so that the window is crossed every way.

Most cases are cuts of a few master sequences: what a causal model computes at a position depends on the tokens up to
it alone, so that one recorded pass over a sequence is the reference of every case that begins with the same tokens.

Standard library and numpy only: the same cases are used by the exporter, the runners and other people's engines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvparity.exporter.contract.spec import DECODE, PREFILL, GraphKind, ModelSpec

__all__ = ["Case", "Step", "default_cases", "left_padded", "master_of", "masters", "seeded_tokens"]

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Step:
    """One call: tokens ``start`` to ``stop`` of a case through one graph.

    Attributes:
        index: Number of the call in its case, from 0.
        graph: Which graph is called.
        start: First slot of this call; equally the number of slots before it.
        stop: One past the last slot.
        reached: Slots that calls before this one came to; more than ``start`` where this one goes back.
    """

    index: int
    graph: GraphKind
    start: int
    stop: int
    reached: int = 0

    @property
    def tokens(self) -> int:
        """Tokens that this call carries."""
        return self.stop - self.start

    @property
    def peak(self) -> int:
        """Slots that the calls so far came to, this one included."""
        return max(self.reached, self.stop)


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

    def row(self, index: int) -> IntArray:
        """(total - pad,) int64: the tokens of one batch row without its padding."""
        return self.tokens[index, self.pads[index] :]

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


class _Schedule:
    """Builds the cases of one model as cuts of seeded sequences; a case that is too long is cut down, never left out.

    Args:
        spec: The model.
        limit: Most tokens of a case.
        longest: Tokens of one call over all rows that its logits leave room for.
    """

    def __init__(self, spec: ModelSpec, limit: int, longest: int) -> None:
        self.spec, self.limit, self.longest = spec, limit, longest
        self.cases: list[Case] = []
        self._random = [seeded_tokens(spec, limit, seed)[0] for seed in (1, 2, 3)]

    def add(
        self, kind: str, chunks: Sequence[int], why: str, *, first: GraphKind = PREFILL, of: int = 0, sized: bool = True
    ) -> None:
        """Add a single-row case: the beginning of random sequence ``of``, named after its kind and first call."""
        chunks = self._fit(chunks)
        self._keep(f"{kind}-{chunks[0]}" if sized else kind, self._random[of][None, : sum(chunks)], chunks, why, first)

    def add_tokens(self, name: str, tokens: Sequence[int], chunks: Sequence[int], why: str) -> None:
        """Add a single-row case of given tokens."""
        chunks = self._fit(chunks)
        self._keep(name, np.asarray([tokens[: sum(chunks)]], np.int64), chunks, why)

    def add_batch(self, name: str, chunks: Sequence[int], pads: Sequence[int], why: str) -> None:
        """Add a ragged batch, left-padded: each row begins one of the random sequences."""
        chunks = self._fit(chunks)
        total = sum(chunks)
        rows = max(self.longest // max(chunks), 2)
        pads = pads if len(pads) <= rows else pads[1 : 1 + rows]
        pads = tuple(sorted({min(pad, total - 1) for pad in pads}))
        if self.spec.position_by_slot:
            pads, why = (0,) * len(pads), "rows of one length: this model counts positions by slot, padding included"
        if self.spec.rope_switch is not None and total > self.spec.rope_switch:
            pads, why = (0,) * len(pads), "rows of one length: the longest row sets the rotary frequencies of all"
        tokens = np.stack([self._random[row % len(self._random)][:total] for row in range(len(pads))])
        self._keep(name, left_padded(self.spec, tokens, pads), chunks, why, pads=pads)

    def _keep(
        self,
        name: str,
        tokens: IntArray,
        chunks: tuple[int, ...],
        why: str,
        first: GraphKind = PREFILL,
        pads: tuple[int, ...] = (0,),
    ) -> None:
        if all(case.name != name for case in self.cases):
            self.cases.append(Case(name, tokens, chunks, pads, first, why))

    def _fit(self, chunks: Sequence[int]) -> tuple[int, ...]:
        """The same calls in as many tokens as a case may have: long calls are cut to one length."""
        if sum(chunks) <= self.limit:
            return tuple(chunks)
        caps = range(self.limit, 0, -1)
        cap = next((cap for cap in caps if sum(min(call, cap) for call in chunks) <= self.limit), 1)
        return tuple(min(call, cap) for call in chunks)[: self.limit]


def default_cases(
    spec: ModelSpec, text: Sequence[int] = (), limit: int | None = None, rows: int | None = None
) -> tuple[Case, ...]:
    """The position schedule of a model: every way that prefill, chunks and decode steps can meet the window.

    Every kind of case is there however short the cases must be; :func:`exporter.contract.features.unproven` says what
    a schedule that is too short for the window does not show.

    Args:
        spec: The model; its smallest window W sets the lengths (at most 64 is used where every layer is full).
        text: Token ids of real text, for the cases that use it.
        limit: Longest case in tokens; where None, what the window needs, at least 1,000; never past ``max_position``.
        rows: Rows of the layout's buffers, which no case may be longer than.
    """
    own = min(spec.windows, default=None)
    limit = min(limit or _default_limit(own or 64), spec.max_position, rows or spec.max_position)
    window = _edge(own, limit)
    plan = _Schedule(spec, limit, max(_CALL_BYTES // (4 * spec.vocab_size), limit))
    _prefill_cases(plan, window, limit)
    _decode_cases(plan, window)
    _chunk_cases(plan, window)
    _switch_cases(plan, limit)
    _state_cases(plan)
    _batch_cases(plan, window)
    _token_cases(plan)
    _text_cases(plan, window, text)
    return tuple(plan.cases)


_CALL_BYTES = 2_000_000_000  # logits of one call of several rows; a vocabulary of 262,144 takes 1 MB a token
_MOST = 16_384  # tokens of the longest default case: the attention scores of a reference grow with its square


def _default_limit(window: int) -> int:
    """Long enough for three chunks beyond a window of up to 512, and for one prefill of 2W + 3 beyond larger ones.

    Of a window too large for that, its edge is crossed where that is affordable, and not where it is not.
    """
    if window <= 512:
        return max(1000, 3 * (window + 1))
    if 2 * window + 8 <= _MOST:
        return max(1000, 2 * window + 8)
    return window + 64 if window + 64 <= _MOST else 1000


def _edge(window: int | None, limit: int) -> int:
    """What stands for the window: the model's own where a case can cross it, else up to a third of the longest case."""
    third = max(limit // 3 - 1, 2)
    if window is None:
        return min(64, third)
    return window if window < limit else min(64, third)


def _prefill_cases(plan: _Schedule, window: int, limit: int) -> None:
    for length in (1, 2, window - 1, window, window + 1, 2 * window + 3):
        if length >= 1:
            plan.add("prefill", [length], f"one prefill of {length} tokens, window {window}")
    plan.add("prefill", [limit], "one long prefill, near the last position")


def _switch_cases(plan: _Schedule, limit: int) -> None:
    """Calls below, at and beyond the length at which rotary frequencies change, for models that change them."""
    switch = plan.spec.rope_switch
    if switch is None or not 4 <= switch <= limit - 4:
        return
    for length in (switch - 1, switch, switch + 1):
        plan.add("prefill", [length], f"one prefill of {length} tokens, rotary frequencies change beyond {switch}")
    plan.add("rope-switch-steps", [switch - 3] + [1] * 6, f"token by token beyond {switch}", of=1, sized=False)
    plan.add("rope-switch-chunk", [switch - 3, 5, 1, 1], f"a chunk from below {switch} to beyond it", of=2, sized=False)


def _state_cases(plan: _Schedule) -> None:
    """Edges of convolutions and of the chunks that recurrences are computed in, for models that have them."""
    states = [state for slot in plan.spec.slots for state in slot.states]
    for kernel in sorted({state.shape[-1] + 1 for state in states if state.part == "conv_state"}):
        for length in range(max(kernel - 2, 1), kernel + 2):
            plan.add("prefill", [length], f"one prefill of {length} tokens, convolutions of {kernel}")
        plan.add("chunk", [max(kernel - 2, 1)] * 3, f"chunks that fill no convolution of {kernel}", of=1)
    for chunk in sorted({state.chunk for state in states if state.chunk}):
        for length in (chunk - 1, chunk, chunk + 1, 2 * chunk + 3):
            plan.add("prefill", [length], f"one prefill of {length} tokens, chunks of {chunk}")
        plan.add("chunk", [chunk + 1, chunk - 1, chunk, 1], f"calls around chunks of {chunk}", of=1)


def _decode_cases(plan: _Schedule, window: int) -> None:
    half = max(window // 2, 1)
    steps = min(2 * window - half, 192)
    start = max(half, window - steps // 2)
    across = [start] + [1] * steps
    plan.add("decode-across", across, "token by token from below the window to beyond it", of=1, sized=False)
    for length in (window - 1, window, window + 1):
        if length >= 1:
            why = f"prefill of {length}, then decode: the cache just fills"
            plan.add("handoff", [length, 1, 1, 1], why, of=1)
    plan.add("decode-only", [1] * 12, "the decode graph alone, from an empty cache", first=DECODE, of=1, sized=False)
    far = [max(plan.limit - 8, 1)] + [1] * 8
    plan.add("decode-far", far, "decode near the last position", sized=False)


def _chunk_cases(plan: _Schedule, window: int) -> None:
    plan.add("chunk", [1] * 10, "chunks of one token from the first on", of=2)
    sevens = [7] * (2 * window // 7 + 2) if window <= 64 else [window - 20] + [7] * 8
    plan.add("chunk-7", sevens, "chunks of seven", of=2, sized=False)
    for length in (window - 1, window, window + 1):
        if length >= 1:
            plan.add("chunk", [length] * 3, f"three chunks of {length}")
    plan.add("chunk-cross", [window + 9, window + 5], "two chunks that both cross the window", of=2, sized=False)
    why = "the decode graph takes the first chunk too"
    plan.add("chunk-empty", [window + 3, 4, 1], why, first=DECODE, of=2, sized=False)


def _batch_cases(plan: _Schedule, window: int) -> None:
    long = 2 * window + 5
    plan.add_batch("batch-ragged", [long, 1, 1, 1], (0, 3, window, long - 2), "ragged rows, left-padded, then decode")
    plan.add_batch("batch-chunks", [8, window, 9, 1, 1], (0, 5, 12), "a row's first chunk is padding only")


def _token_cases(plan: _Schedule) -> None:
    last = plan.spec.vocab_size - 1
    special = {plan.spec.bos_token_id, plan.spec.pad_token_id, *plan.spec.eos_token_ids, 0, 1, last - 1, last}
    ids = sorted(token for token in special if token is not None and 0 <= token <= last)
    why = "special tokens and both ends of the vocabulary"
    plan.add_tokens("special-tokens", ids * 3, [len(ids) * 3], why)


def _text_cases(plan: _Schedule, window: int, text: Sequence[int]) -> None:
    """Real text, which real models need: random ids drive them far outside of what they were trained on."""
    half, tail = max(window // 2, 1), min(36, window)
    shapes = {
        "text": ([window + tail, 1, 1, 1, 1], "real text, past the window, then decode"),
        "text-prefill": ([2 * window + 3], "one prefill of real text, more than twice the window"),
        "text-across": ([max(window - 8, 1)] + [1] * 24, "real text token by token across the window"),
        "text-chunks": ([window + 9, window + 5, half], "chunks of real text that cross the window"),
    }
    for name, (chunks, why) in shapes.items():
        if len(text) >= min(sum(chunks), plan.limit):
            plan.add_tokens(name, text, chunks, why)
