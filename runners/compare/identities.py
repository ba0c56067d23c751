"""Identities that need no reference: the same tokens, cut or batched another way, must give the same numbers.

Full prefill == chunks == one token at a time == prefill then decode, at every split around the window; a padded row ==
that row alone; a second run == the first one, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.cases import Case, left_padded, seeded_tokens
from kvparity.exporter.contract.schedule import default_cases
from kvparity.exporter.contract.spec import DECODE, PREFILL, ExportOptions, GraphKind, ModelSpec, present_name
from kvparity.runners.base import Array, Session
from kvparity.runners.compare.expectations import dtype_of
from kvparity.runners.decode.play import StepResult, play
from kvparity.runners.diff.collect import CaseDiff, Collector
from kvparity.runners.diff.gate import compare_outputs
from kvparity.runners.diff.names import axis_of, kind_of
from kvparity.runners.diff.tensor import Expectation

__all__ = ["Identity", "Played", "identities", "judge_identity", "play_whole", "shown_case"]

NEAR = 3  # splits on either side of the window


@dataclass(frozen=True, eq=False)
class Identity:
    """Two ways to compute the same thing.

    Attributes:
        name: Short and unique.
        why: What it says, in words.
        base: Played once for all identities that share it; a single row.
        variant: The other way.
        row: Batch row of the variant that holds the base's tokens, after that row's padding.
        bitwise: Whether the same bits are required, not only values within the limit.
    """

    name: str
    why: str
    base: Case
    variant: Case
    row: int = 0
    bitwise: bool = False


@dataclass(frozen=True, eq=False)
class Played:
    """What a case gave: logits by token slot, and the caches after the last call.

    Attributes:
        logits: (slots, vocab); zeros where ``known`` is false.
        known: (slots,) whether logits were returned for the slot.
        caches: ``present.N.<part>`` of the last call.
    """

    logits: Array
    known: npt.NDArray[np.bool_]
    caches: Mapping[str, Array] = field(default_factory=dict)


def identities(model: ModelSpec, options: ExportOptions) -> tuple[Identity, ...]:
    """Every identity of a model; those longer than its positions are left out."""
    window = model.window or 64
    found = [*_cuts(model, window), *_padded(model, window), *_reruns(model, window)]
    fitting = (item for item in found if max(item.base.total, item.variant.total) <= model.max_position)
    return (*fitting, *_moved(model, options))


def _single(model: ModelSpec, total: int, chunks: Sequence[int], first: GraphKind = PREFILL) -> Case:
    tokens = seeded_tokens(model, total, seed=total)
    return Case(f"tokens-{total}", tokens, tuple(chunks), (0,), first)


def _cuts(model: ModelSpec, window: int) -> Iterator[Identity]:
    """One prefill against the same tokens cut into calls."""
    total = window + 8
    base = _single(model, total, [total])

    def cut(name: str, chunks: Sequence[int], why: str, first: GraphKind = PREFILL) -> Identity:
        return Identity(name, f"one prefill of {total} == {why}", base, _single(model, total, chunks, first))

    yield cut("stepwise", [1] * total, "one token at a time")
    yield cut("decode-graph", [total], "the decode graph from an empty cache", DECODE)
    sevens = [7] * (total // 7) + ([total % 7] if total % 7 else [])
    yield cut("chunks-7", sevens, "chunks of seven")
    for split in range(max(window - NEAR, 1), window + NEAR + 1):
        rest = total - split
        yield cut(f"handoff-{split}", [split] + [1] * rest, f"prefill of {split}, then decode steps")
        yield cut(f"split-{split}", [split, rest], f"prefill of {split}, then {rest} tokens at once")
    long = 2 * window + 9
    variant = _single(model, long, [window + 5, window + 4])
    yield Identity("chunks-cross", "two chunks that both cross the window", _single(model, long, [long]), variant)


def _padded(model: ModelSpec, window: int) -> Iterator[Identity]:
    """A left-padded row of a batch against that row alone."""
    total, pads = window + 16, (0, 3, max(window // 2, 4), window + 10)
    tokens = seeded_tokens(model, total, seed=3, batch=len(pads))
    for name, chunks in (("padded", [total]), ("padded-decode", [total - 3, 1, 1, 1])):
        batch = Case("batch", left_padded(model, tokens, pads), tuple(chunks), pads)
        for row, pad in enumerate(pads):
            alone = Case(f"row-{row}", tokens[row : row + 1, : total - pad], (total - pad,), (0,))
            why = f"row {row} alone == the same row padded by {pad} in a batch of {len(pads)}"
            yield Identity(f"{name}-{pad}", why, alone, batch, row)


def _reruns(model: ModelSpec, window: int) -> Iterator[Identity]:
    """The same calls twice, after everything else was played in between."""
    for name, chunks in (("rerun-prefill", [window + 8]), ("rerun-decode", [window - 1] + [1] * 4)):
        case = _single(model, sum(chunks), chunks)
        again = replace(case, tokens=case.tokens.copy())
        yield Identity(name, "a second run == the first, bit for bit", case, again, bitwise=True)


def _moved(model: ModelSpec, options: ExportOptions) -> Iterator[Identity]:
    """Cases that go back or move rows against one prefill of what each row of their last call holds."""
    for case in (case for case in default_cases(model, options=options) if case.moves):
        step = list(case.steps())[-1]
        for row in step.rows:
            tokens = case.row(row)[None, : step.stop - case.pads[row]]
            base = Case(f"{case.name}-{row}", tokens, (tokens.shape[1],), (0,))
            name = case.name if len(step.rows) == 1 else f"{case.name}-row-{row}"
            yield Identity(name, f"one prefill == {case.why}", base, case, row)


def play_whole(bundle: Bundle, session: Session, case: Case) -> Played:
    """Play a single-row case and keep its logits and last caches."""
    vocab = bundle.model.vocab_size
    logits: Array = np.zeros((case.total, vocab), np.float32)
    known = np.zeros(case.total, bool)
    caches: Mapping[str, Array] = {}
    for result in play(bundle, session, case):
        caches = {name: value for name, value in result.outputs.items() if name != "logits"}
        rows = np.asarray(result.outputs.get("logits", np.zeros(0)))
        if rows.ndim != 3 or rows.shape[0] != 1 or rows.shape[2] != vocab or rows.shape[1] > result.step.stop:
            continue  # the variant has the same fault, and is judged for it
        if rows.dtype == np.float64 and not known.any():
            logits = logits.astype(np.float64)
        first = result.step.stop - rows.shape[1]
        logits[first : result.step.stop] = rows[0]
        known[first : result.step.stop] = True
    return Played(logits, known, caches)


def judge_identity(
    bundle: Bundle, session: Session, identity: Identity, base: Played, limits: Mapping[str, float], runner: str
) -> CaseDiff:
    """Play the variant and compare it with what the base gave.

    Args:
        bundle: The bundle.
        session: The runner's session.
        identity: What must be equal.
        base: The base, played by the same session.
        limits: Largest difference that passes, by output kind.
        runner: Runner's label.
    """
    variant = identity.variant
    collector = Collector("self", runner, shown_case(identity), bundle.model, limits)
    for result in play(bundle, session, variant):
        step, carried = result.step, result.step.rows or tuple(range(variant.batch))
        if identity.row not in carried:
            collector.add(step, [], {}, [])
            continue
        row = slice(carried.index(identity.row), carried.index(identity.row) + 1)
        step = replace(step, rows=(identity.row,)) if step.rows else step
        final = step.index == len(variant.chunks) - 1
        outputs = {name: np.asarray(value)[row] for name, value in result.outputs.items() if final or name == "logits"}
        expected = _expectations(bundle, identity, base, result, limits, final=final)
        collector.add(step, compare_outputs(outputs, expected), outputs, expected)
    return collector.finish()


def shown_case(identity: Identity) -> Case:
    """The variant under the identity's name; of a plain case, the row that is compared."""
    case, row = identity.variant, slice(identity.row, identity.row + 1)
    named = replace(case, name=identity.name, why=identity.why)
    return named if case.moves else replace(named, tokens=case.tokens[row], pads=case.pads[row])


def _expectations(
    bundle: Bundle, identity: Identity, base: Played, result: StepResult, limits: Mapping[str, float], *, final: bool
) -> list[Expectation]:
    """The base's numbers, moved to the slots of the variant."""
    step, pad = result.step, identity.variant.pads[identity.row]
    first = step.stop - 1 if bundle.options.logits == "last" else step.start
    slots = np.arange(first, step.stop) - pad
    live = (slots >= 0) & base.known[np.maximum(slots, 0)]
    values = np.where(live[:, None], base.logits[np.maximum(slots, 0)], 0)
    tensors: list[tuple[str, Array, Array]] = [("logits", values[None], live[None])]
    for slot, part in bundle.model.cache_names() if final else ():
        name = present_name(slot.slot, part)
        kept = bundle.options.kept_rows(slot, step.stop, step.peak)
        shape = slot.shape(part, 1, kept)
        known = _cache(base, name, shape, rows=2 if part in ("key", "value") else None)
        if part not in ("key", "value"):
            tensors.append((name, known, np.ones((1, known.shape[2] if axis_of(name) else 1))))
            continue
        rows = np.zeros(shape, known.dtype)
        count = min(kept, known.shape[2], step.stop - pad)
        rows[:, :, kept - count :] = known[:, :, known.shape[2] - count :]
        tensors.append((name, rows, np.arange(kept)[None] >= kept - count))
    return [
        Expectation(
            name=name,
            values=array,
            dtype=array.dtype.name if array.dtype == np.float64 else dtype_of(bundle, name),
            live=mask.astype(bool),
            axis=axis_of(name),
            first=step.stop - mask.shape[1],
            limit=0.0 if identity.bitwise else limits[kind_of(name)],
            bitwise=identity.bitwise,
        )
        for name, array, mask in tensors
    ]


def _cache(base: Played, name: str, shape: tuple[int, ...], rows: int | None) -> Array:
    """The base's part of a slot; no rows where it is not what the contract asks, which the variant fails on.

    Args:
        base: What was played.
        name: Output name.
        shape: What the contract asks, but for the number of rows.
        rows: Axis of the rows; None for a state, which is zeros then.
    """
    found = np.asarray(base.caches.get(name, np.zeros(0)))
    wanted = [size if axis != rows else 0 for axis, size in enumerate(shape)]
    fits = found.ndim == len(shape) and all(
        size == found.shape[axis] for axis, size in enumerate(shape) if axis != rows
    )
    return found if fits else np.zeros(wanted, np.float32)
