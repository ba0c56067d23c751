"""The default schedule: cases that meet the window every way, and that do with caches what hosts do.

Standard library and numpy only, as :mod:`exporter.contract.cases`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvparity.exporter.contract.cases import Case, IntArray, Move, left_padded, seeded_tokens
from kvparity.exporter.contract.spec import DECODE, PREFILL, ExportOptions, GraphKind, ModelSpec

__all__ = ["default_cases"]


_Call = tuple[int, Move]  # its tokens, and where it continues
_DRAFT = 4  # tokens of a draft


@dataclass(frozen=True)
class _Places:
    """Where cases go back: tokens of a draft, and the slots up to which its tokens are right.

    Attributes:
        draft: Tokens of a draft; 0 where cases have no room for one.
        edge: Where the next token just fills the window.
        past: Past the window.
        limit: Longest case.
    """

    draft: int
    edge: int
    past: int
    limit: int

    @staticmethod
    def of(window: int, limit: int, rows: int) -> _Places:
        """The places for a window and the longest case; a call returns so many rows, and all of its own are wanted."""
        draft = min(_DRAFT, limit // 2 - 1, rows)
        if draft < _DRAFT - 1:
            return _Places(0, limit, limit, limit)
        last = limit - draft
        edge = min(max(window - 1, draft + 1), last)
        past = window + max(min(window // 2, 48), draft + 1)
        return _Places(draft, edge, min(max(past, edge + 1), last), limit)


class _Schedule:
    """Builds the cases of one model as cuts of seeded sequences; a case that is too long is cut down, never left out.

    Left out are cases whose reference does not exist (``ModelSpec.single_steps``).

    Args:
        spec: The model.
        limit: Most tokens of a case.
        longest: Tokens of one call over all rows that its logits leave room for.
        forks: Slots at which the second and the third random sequence leave the first, so that their tokens there are
            drafts that the first one rejects, or other beams: no sequence has to be recorded for those alone.
    """

    def __init__(self, spec: ModelSpec, limit: int, longest: int, forks: tuple[int, int]) -> None:
        self.spec, self.limit, self.longest = spec, limit, longest
        self.cases: list[Case] = []
        self._random = [seeded_tokens(spec, limit, seed)[0] for seed in (1, 2, 3)]
        for other, fork in zip(self._random[1:], forks, strict=True):
            other[:fork] = self._random[0][:fork]
            if fork < limit and other[fork] == self._random[0][fork]:
                other[fork] = (other[fork] + 1) % spec.vocab_size

    def add(
        self, kind: str, chunks: Sequence[int], why: str, *, first: GraphKind = PREFILL, of: int = 0, sized: bool = True
    ) -> None:
        """Add a single-row case: the beginning of random sequence ``of``, named after its kind and first call."""
        chunks = self._fit(chunks)
        name = f"{kind}-{chunks[0]}" if sized else kind
        self._keep(name, self._random[of][None, : sum(chunks)], chunks, why, first)

    def add_tokens(self, name: str, tokens: Sequence[int], chunks: Sequence[int], why: str) -> None:
        """Add a single-row case of given tokens."""
        chunks = self._fit(chunks)
        self._keep(name, np.asarray([tokens[: sum(chunks)]], np.int64), chunks, why, drawn=False)

    def add_batch(self, name: str, chunks: Sequence[int], pads: Sequence[int], why: str) -> None:
        """Add a ragged batch, left-padded: each row begins one of the random sequences."""
        chunks = self._fit(chunks)
        total = sum(chunks)
        rows = max(self.longest // max(chunks), 2)
        pads = pads if len(pads) <= rows else pads[1 : 1 + rows]
        pads = tuple(sorted({min(pad, total - 1) for pad in pads}))
        if self.spec.position_by_slot and total > self.spec.position_by_slot_from:
            pads, why = (0,) * len(pads), "rows of one length: this model counts positions by slot, padding included"
        if self.spec.rope_switch is not None and total > self.spec.rope_switch:
            pads, why = (0,) * len(pads), "rows of one length: the longest row sets the rotary frequencies of all"
        tokens = np.stack([self._random[row % len(self._random)][:total] for row in range(len(pads))])
        self._keep(name, left_padded(self.spec, tokens, pads), chunks, why, pads=pads)

    def add_moves(self, name: str, why: str, calls: Sequence[_Call], of: Sequence[int], pads: Sequence[int]) -> None:
        """Add a case with moves: row ``r`` begins random sequence ``of[r]`` after its padding."""
        total = max(move.start + tokens for tokens, move in calls)
        tokens = left_padded(self.spec, np.stack([self._random[index][:total] for index in of]), pads)
        chunks, moves = zip(*calls, strict=True)
        self._keep(name, tokens, chunks, why, pads=tuple(pads), moves=moves)

    def _keep(
        self,
        name: str,
        tokens: IntArray,
        chunks: tuple[int, ...],
        why: str,
        first: GraphKind = PREFILL,
        pads: tuple[int, ...] = (0,),
        moves: tuple[Move, ...] = (),
        drawn: bool = True,
    ) -> None:
        case = Case(name, tokens, chunks, pads, first, why, moves, drawn)
        if self.spec.single_steps and any(step.start and step.tokens > 1 for step in case.steps()):
            return
        if all(other.name != name for other in self.cases):
            self.cases.append(case)

    def _fit(self, chunks: Sequence[int]) -> tuple[int, ...]:
        """The same calls in as many tokens as a case may have: long calls are cut to one length."""
        if sum(chunks) <= self.limit:
            return tuple(chunks)
        caps = range(self.limit, 0, -1)
        cap = next((cap for cap in caps if sum(min(call, cap) for call in chunks) <= self.limit), 1)
        return tuple(min(call, cap) for call in chunks)[: self.limit]


def default_cases(
    spec: ModelSpec, text: Sequence[int] = (), limit: int | None = None, options: ExportOptions | None = None
) -> tuple[Case, ...]:
    """The position schedule of a model: every way that prefill, chunks and decode steps can meet the window.

    Every kind of case is there however short the cases must be; :func:`exporter.contract.features.unproven` says what
    a schedule that is too short for the window does not show.

    Args:
        spec: The model; its smallest window W sets the lengths (at most 64 is used where every layer is full).
        text: Token ids of real text, for the cases that use it.
        limit: Longest case in tokens; where None, what the window needs, at least 1,000; never past ``max_position``.
        options: How the bundle keeps caches: no case is longer than its buffers, and tokens are taken back as far as
            its caches allow.
    """
    options = options or ExportOptions()
    own = min(spec.windows, default=None)
    limit = min(limit or _default_limit(own or 64), spec.max_position, options.max_len or spec.max_position)
    window = _edge(own, limit)
    rows = limit if own is None else own - 1 + options.rewind
    places = _Places.of(window, min(limit, spec.rope_switch or limit), rows)
    plan = _Schedule(spec, limit, max(_CALL_BYTES // (4 * spec.vocab_size), limit), (places.past, places.edge))
    _prefill_cases(plan, window, limit)
    _decode_cases(plan, window)
    _chunk_cases(plan, window)
    _switch_cases(plan, limit)
    _state_cases(plan)
    _batch_cases(plan, window)
    _token_cases(plan)
    _text_cases(plan, window, text)
    if places.draft:
        _rewind_cases(plan, places, options)
        _moved_cases(plan, places)
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


def _rewind_cases(plan: _Schedule, places: _Places, options: ExportOptions) -> None:
    """Drafts of which every number of tokens is rejected, at the window and past it."""
    if not plan.spec.has_states:  # states hold no single tokens
        for name, fork, of in (("rewind-edge", places.edge, 2), ("rewind-past", places.past, 1)):
            why = f"{places.draft} tokens of a draft around slot {fork}, of which all, …, none are kept"
            plan.add_moves(name, why, _every_share(plan.spec, places.draft, fork, options), (0, of), (0, 0))
        why = "two drafts in one conversation, in one call and token by token, half of each rejected"
        plan.add_moves("rewind-rounds", why, _rounds(plan.spec, places, options), (0, 2, 1), (0, 0, 0))
    kept, fork = places.draft // 2, places.past
    before = fork - kept
    calls = [
        (before, Move(0, (0,))),
        (places.draft, Move(before, (1,))),
        (kept + 1, Move(before, (0,), ((0, 0),))),
        (1, Move(fork + 1, (0,))),
    ]
    plan.add_moves("replay", "the tokens of a draft that are kept, again from before it", calls, (0, 1), (0, 0))


def _every_share(spec: ModelSpec, draft: int, fork: int, options: ExportOptions) -> list[_Call]:
    """From ``draft`` slots before a fork on, a draft at every slot up to it, and each time the right token after it."""
    calls: list[_Call] = [(fork - draft, Move(0, (0,)))]
    main = 0  # the call that came to where the next draft begins
    for start in range(fork - draft, fork + 1):
        if start > fork - draft:
            calls.append((1, Move(start - 1, (0,), ((main, 0),))))
            main = len(calls) - 1
        calls.append((draft, Move(start, (1,))))
        calls.append((1, _back(spec, options, fork, start + draft, len(calls) - 1)))
    calls.append((1, Move(fork + 1, (0,))))
    return calls


def _rounds(spec: ModelSpec, places: _Places, options: ExportOptions) -> list[_Call]:
    """One conversation: a draft in one call, one token by token, and one at the end that is kept whole."""
    draft, kept = places.draft, places.draft // 2
    calls: list[_Call] = [(places.edge - kept, Move(0, (0,)))]
    calls.append((draft, Move(places.edge - kept, (1,))))
    calls.append((1, _back(spec, options, places.edge, places.edge - kept + draft, 1)))
    start, begun = places.edge + 1, places.past - kept
    if begun > start:
        calls.append((begun - start, Move(start, (0,))))
        before, peak = len(calls) - 1, begun + draft
        calls += [(1, Move(slot, (2,))) for slot in range(begun, peak)]
        if options.reaches(spec, places.past, peak):
            calls.append((1, Move(places.past, (0,))))
        else:  # what the single calls dropped is in none of them: the kept tokens again, from before the draft
            calls.append((kept + 1, Move(begun, (0,), ((before, 0),))))
        start = places.past + 1
    calls.append((min(draft, places.limit - start), Move(start, (0,))))
    return calls


def _back(spec: ModelSpec, options: ExportOptions, start: int, peak: int, call: int) -> Move:
    """The right text again from a slot on: the newest rows dropped where caches reach, else joined to older ones."""
    return Move(start, (0,), () if options.reaches(spec, start, peak) else ((call, 0),))


def _moved_cases(plan: _Schedule, places: _Places) -> None:
    """Caches that are saved and loaded, and batch rows that change places, leave and join."""
    fork = places.past
    calls = [
        (fork - 1, Move(0, (0,))),
        (1, Move(fork - 1, (0,))),
        (places.edge + 1, Move(0, (2,))),
        (1, Move(places.edge + 1, (2,))),
        (1, Move(fork, (1,), ((1, 0),))),
        (2, Move(fork, (0,), ((1, 0),))),
    ]
    plan.add_moves("resume", "two texts go on from saved caches after a third one", calls, (0, 1, 2), (0, 0, 0))
    pad = 0 if plan.spec.position_by_slot else min(3, places.edge - 1)
    calls = [
        (fork, Move(0, (0, 2))),
        (1, Move(fork, (0, 1, 2), ((0, 0), (0, 0), (0, 1)))),
        (1, Move(fork + 1, (2, 1, 0), ((1, 2), (1, 1), (1, 0)))),
        (1, Move(fork + 2, (1, 0, 2), ((2, 1), (2, 2), (2, 0)))),
    ]
    plan.add_moves("reorder", "beams: a row becomes two, and rows change places", calls, (0, 1, 2), (0, 0, pad))
    rows = tuple(range(min(max(plan.longest // fork, 2), 3)))
    calls = [
        (fork, Move(0, rows)),
        (1, Move(fork, rows)),
        (1, Move(fork + 1, (0, rows[-1]), ((1, 0), (1, rows[-1])))),
        (1, Move(fork + 2, (rows[-1],), ((2, 1),))),
    ]
    plan.add_moves(
        "batch-leave", "rows of a batch end one after the other", calls, rows, (pad, 0, 2 * pad)[: len(rows)]
    )
    begun = fork if plan.spec.position_by_slot else max(places.edge // 2, 1)
    calls = [
        (fork, Move(0, (0,))),
        (begun, Move(0, (1,))),
        (1, Move(fork, (0, 2), ((0, 0), (1, 0)))),
        (1, Move(fork + 1, (0, 2))),
    ]
    pads = (0, 0, fork - begun)
    plan.add_moves("batch-join", "a row joins a longer one, padded on the left", calls, (0, 2, 2), pads)
