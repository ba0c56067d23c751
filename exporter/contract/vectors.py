"""Reference vectors: what PyTorch computed for a sequence, small enough to ship and exact enough to judge rounding.

A sequence is recorded once, and every case that begins with its tokens is a cut of it: what a causal model computes at
a position depends on the tokens up to it alone, and a cache row is written once and never changes. The float64 result
is stored as its difference from the float32 one: |difference| is about 1e-5, so the sum is exact to about 1e-12 at half
the bytes. ``docs/bundle.md`` lists the keys of a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvparity.exporter.contract.cases import Case, IntArray, Step
from kvparity.exporter.contract.errors import TraceError
from kvparity.exporter.contract.head import Head
from kvparity.exporter.contract.npz import read_npz, write_npz
from kvparity.exporter.contract.spec import ExportOptions, SlotSpec, past_name, present_name

__all__ = [
    "IN_PIECES",
    "LARGEST",
    "NOISE",
    "SQUARES",
    "DerivedLogits",
    "Recorded",
    "Recorder",
    "Vectors",
    "cache_key",
    "cut",
    "deltas_of",
    "expected_outputs",
    "expected_pasts",
]

Array = npt.NDArray[np.generic]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
NOISE, SQUARES, LARGEST = 0, 1, 2  # columns of ``logits_noise``
_DELTA = "float64_delta/"
IN_PIECES = "noise_in_pieces/"  # before the key of a tensor, its dots as slashes, in ``extra``
_STATES = ("recurrent_state", "ssm_state")  # rewritten by every call


def cache_key(slot: int, part: str) -> str:
    """Key of a slot's rows in a vectors file."""
    return f"cache.{slot}.{part}"


@dataclass(frozen=True, eq=False)
class Recorded:
    """What the reference computed for one sequence.

    Attributes:
        tokens: (total,) int64.
        arrays: ``logits`` (total, vocab), or ``hidden`` (total, hidden) where logits are rebuilt from it; and
            ``cache.N.PART``: keys and values (kv_heads, rows, head_dim); of a convolution the column that each token
            adds (channels, total); other states (calls, …) after each call. Empty where nothing was recorded.
        deltas: float64 result minus ``arrays``, by the same keys; empty where none was recorded. In float32, which
            keeps the result to 1e-13 where ``arrays`` are off by 1e-6; in float64 for bundles that compute coarser.
        extra: Beside hidden states: ``logits_noise`` (total, 3), PyTorch's own error of each position's logits
            (largest, sum of squares) and their largest magnitude; ``check_positions`` and ``check_logits``, whole
            float64 logits as the checkpoint's own class gave them; ``top_ids``, ``top_logits``, ``column_ids`` and
            ``column_logits`` for replays in other languages. ``rows``: slots of the recorded cache rows, where those
            are a sample. ``noise_in_pieces/logits`` (total,) and ``noise_in_pieces/cache/N/PART`` (rows,): PyTorch's
            own largest error at each slot when it is given the sequence in pieces, which rounds otherwise than one
            call. ``stops``: where the calls of
            the pass ended, where states were recorded, one per call.
    """

    tokens: IntArray
    arrays: Mapping[str, Array] = field(default_factory=dict)
    deltas: Mapping[str, Array] = field(default_factory=dict)
    extra: Mapping[str, Array] = field(default_factory=dict)

    @property
    def rows(self) -> IntArray:
        """Slots of the recorded cache rows."""
        found = self.extra.get("rows")
        return np.arange(len(self.tokens)) if found is None else found.astype(np.int64)

    def entering(self, start: int, stop: int) -> Floats:
        """What enters the head at some positions, in float64."""
        values: Floats = self.arrays["hidden"][start:stop].astype(np.float64)
        if "hidden" in self.deltas:
            values = values + self.deltas["hidden"][start:stop].astype(np.float64)
        return values

    def save(self, path: Path) -> None:
        """Write the ``.npz``."""
        deltas = {_DELTA + key: value for key, value in self.deltas.items()}
        write_npz(path, {"tokens": self.tokens, **self.arrays, **deltas, **self.extra})

    @staticmethod
    def load(path: Path) -> Recorded:
        """Read a file written by :meth:`save`.

        Raises:
            TraceError: The file is unreadable or lacks a key of the format.
        """
        data = read_npz(path)
        if "tokens" not in data:
            raise TraceError(f"{path}: reference vectors lack tokens; found {sorted(data)[:8]}")
        arrays = {key: data[key] for key in data if key in ("logits", "hidden") or key.startswith("cache.")}
        deltas = {key.removeprefix(_DELTA): data[key] for key in data if key.startswith(_DELTA)}
        extra = {key: data[key] for key in data if key not in arrays and key != "tokens" and _DELTA not in key}
        return Recorded(data["tokens"].astype(np.int64), arrays, deltas, extra)


class DerivedLogits:
    """Logits (batch, total, vocab) in float64, rebuilt from recorded hidden states where they are looked at.

    It can be sliced along batch and slots like an array, and is one once it is indexed by (batch numbers, slots) or
    given to ``np.asarray``. Slots of padding hold zeros. Where the checkpoint's own class gave whole logits, those are
    taken instead of rebuilt ones.

    Args:
        head: The head.
        rows: What was recorded for each batch row.
        pads: Padding of each row.
        total: Slots.
    """

    ndim = 3
    _slots: range
    dtype = np.dtype(np.float64)

    def __init__(self, head: Head, rows: Sequence[Recorded], pads: Sequence[int], total: int) -> None:
        self._head, self._rows, self._pads = head, tuple(rows), tuple(pads)
        self._slots = range(total)

    @property
    def shape(self) -> tuple[int, ...]:
        """(batch, slots, vocab)."""
        return (len(self._rows), len(self._slots), self._head.size)

    def __getitem__(self, key: Any) -> Any:
        batches, slots = key
        if isinstance(slots, slice):
            chosen = range(len(self._rows))[batches] if isinstance(batches, slice) else batches
            rows = [self._rows[row] for row in chosen]
            found = DerivedLogits(self._head, rows, [self._pads[row] for row in chosen], 0)
            found._slots = self._slots[slots]
            return found
        if np.ndim(batches) == 0:
            return self._at(int(batches), int(slots))
        values = np.empty((len(batches), self._head.size))
        for index, (batch, slot) in enumerate(zip(batches.tolist(), slots.tolist(), strict=True)):
            values[index] = self._at(batch, slot)
        return values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Floats:
        """All of it; a large vocabulary takes 2 MB a slot."""
        batch, total = self.shape[:2]
        index = np.indices((batch, total)).reshape(2, -1)
        found: Floats = self[index[0], index[1]]
        values = found.reshape(self.shape)
        return values if dtype is None else values.astype(dtype)

    def astype(self, dtype: Any) -> Array:
        """All of it in another dtype."""
        return self.__array__().astype(dtype)

    def _at(self, batch: int, slot: int) -> Floats:
        recorded, position = self._rows[batch], self._slots[slot] - self._pads[batch]
        if position < 0:
            return np.zeros(self._head.size)
        if "check_positions" in recorded.extra:
            at = np.flatnonzero(recorded.extra["check_positions"] == position)
            if len(at):
                whole: Floats = recorded.extra["check_logits"][at[0]].astype(np.float64)
                return whole
        size = self._head.positions
        row: Floats = self._head.block(recorded, position // size, recorded.entering)[position % size]
        return row


@dataclass(frozen=True, eq=False)
class Vectors:
    """One case and what the reference computed for it.

    Attributes:
        case: The tokens and calls.
        arrays: ``logits`` (rows, total, vocab) and ``cache.N.PART`` by key: keys and values (rows, kv_heads, total,
            head_dim), a convolution's columns (rows, channels, total), other states (rows, calls, …).
        deltas: float64 result minus ``arrays``; empty where none was recorded, and without ``logits`` where those are
            rebuilt, in float64 already.
        known: (batch, total) bool: slots whose cache rows were recorded; None where all were.
        noise: (batch, total, 3) where logits are rebuilt: see ``logits_noise`` of :class:`Recorded`; None elsewhere.
        pieces: (batch, total) by key: PyTorch's own largest error at each slot when it is called in pieces.
    """

    case: Case
    arrays: Mapping[str, Array]
    deltas: Mapping[str, Array] = field(default_factory=dict)
    known: Bools | None = None
    noise: Floats | None = None
    pieces: Mapping[str, Array] = field(default_factory=dict)

    @property
    def has_float64(self) -> bool:
        """Whether the float64 result was recorded."""
        return bool(self.deltas)

    def float64(self) -> Mapping[str, Array]:
        """The float64 result by key.

        Raises:
            TraceError: None was recorded.
        """
        if not self.deltas:
            raise TraceError(
                f"case {self.case.name}: no float64 vectors recorded; export again without --vectors float32"
            )
        return {
            key: values.astype(np.float64) + self.deltas[key].astype(np.float64) if key in self.deltas else values
            for key, values in self.arrays.items()
        }


def cut(case: Case, recorded: Sequence[Recorded], head: Head | None) -> Vectors:
    """The reference of a case, from what was recorded for the sequence that each of its rows begins.

    Args:
        case: The case.
        recorded: One per batch row.
        head: Rebuilds logits; needed where hidden states were recorded.

    Raises:
        TraceError: The vectors are of other tokens, or lack logits.
    """
    for row, found in enumerate(recorded):
        if not found.arrays.keys() & {"logits", "hidden"}:
            raise TraceError(f"case {case.name}: reference vectors lack logits; export again")
        if not np.array_equal(found.tokens[: case.total - case.pads[row]], case.row(row)):
            raise TraceError(f"case {case.name}: row {row} does not begin the sequence of its reference; export again")
    names = [key for key in recorded[0].arrays if key not in ("logits", "hidden")]
    arrays: dict[str, Array] = {}
    noise: Floats | None = None
    if "hidden" in recorded[0].arrays:
        if head is None:
            raise TraceError(f"case {case.name}: hidden states are recorded, but not how logits come from them")
        arrays["logits"] = DerivedLogits(head, recorded, case.pads, case.total)  # type: ignore[assignment]
        if all("logits_noise" in found.extra for found in recorded):
            noise = _placed(case, [found.extra["logits_noise"] for found in recorded], 0).astype(np.float64)
    else:
        arrays["logits"] = _placed(case, [found.arrays["logits"] for found in recorded], 0)
    keep = [found.rows for found in recorded]
    for key in names:
        arrays[key] = _whole_case(case, recorded, [found.arrays[key] for found in recorded], key, keep)
    deltas = {
        key: _whole_case(case, recorded, [found.deltas[key] for found in recorded], key, keep)
        for key in recorded[0].deltas
        if key != "hidden"
    }
    known = None
    if any("rows" in found.extra for found in recorded):
        known = np.zeros((case.batch, case.total), bool)
        for row, slots in enumerate(keep):
            known[row, slots[slots < case.total - case.pads[row]] + case.pads[row]] = True
    return Vectors(case, arrays, deltas, known, noise, _pieces(case, recorded, keep))


def _pieces(case: Case, recorded: Sequence[Recorded], keep: Sequence[IntArray]) -> dict[str, Array]:
    """PyTorch's own errors when called in pieces, at the slots of a case."""
    names = [name for name in recorded[0].extra if name.startswith(IN_PIECES)]
    return {
        name.removeprefix(IN_PIECES).replace("/", "."): _placed(
            case, [found.extra[name] for found in recorded], 0, keep if name.endswith(("/key", "/value")) else None
        )
        for name in names
        if all(name in found.extra for found in recorded)
    }


def _whole_case(
    case: Case, recorded: Sequence[Recorded], parts: Sequence[Array], key: str, keep: Sequence[IntArray]
) -> Array:
    """One tensor of a case from what was recorded for its rows."""
    if key == "logits":
        return _placed(case, parts, 0)
    if not key.endswith(_STATES):
        return _placed(case, parts, 1, None if key.endswith("conv_state") else keep)
    states: Array = np.zeros((case.batch, len(case.chunks), *parts[0].shape[1:]), parts[0].dtype)
    for step in case.steps():
        for row in step.rows or range(case.batch):
            found, stop = recorded[row], step.stop - case.pads[row]
            calls = found.extra.get("stops", np.asarray([len(found.tokens)]))
            if stop > 0:  # a call of padding alone leaves the state empty
                place = np.flatnonzero(calls == stop)
                if not len(place):
                    raise TraceError(f"case {case.name}: no state was recorded after {stop} tokens; export again")
                states[row, step.index] = parts[row][place[0]]
    return states


def _placed(case: Case, parts: Sequence[Array], axis: int, keep: Sequence[IntArray] | None = None) -> Array:
    """Rows of a batch in one array, each after its padding; recorded rows at their slots, zeros elsewhere."""
    whole = keep is None or all(_all(slots) for slots in keep)
    if case.batch == 1 and case.pads == (0,) and whole:
        return parts[0][(slice(None),) * axis + (slice(case.total),)][None]
    shape = (case.batch, *parts[0].shape[:axis], case.total, *parts[0].shape[axis + 1 :])
    placed: Array = np.zeros(shape, parts[0].dtype)
    for row, part in enumerate(parts):
        count, into = case.total - case.pads[row], np.moveaxis(placed[row], axis, 0)
        values = np.moveaxis(part, axis, 0)
        if whole:
            into[case.pads[row] :] = values[:count]
        else:
            assert keep is not None
            slots = keep[row][keep[row] < count]
            into[slots + case.pads[row]] = values[: len(slots)]
    return placed


def _all(slots: IntArray) -> bool:
    """Whether rows are those of all slots from 0 on."""
    return len(slots) == 0 or int(slots[-1]) == len(slots) - 1


def deltas_of(wide: Mapping[str, Array], arrays: Mapping[str, Array], *, coarse: bool) -> dict[str, Array]:
    """What :class:`Recorded` keeps of a float64 result.

    Args:
        wide: The float64 result.
        arrays: What the reference computed in the bundle's dtype.
        coarse: Whether that rounds to fewer bits than float32: a difference of 1e-2 in float32 is off by 5e-10.
    """
    dtype = np.float64 if coarse else np.float32
    return {key: (wide[key] - values.astype(np.float64)).astype(dtype) for key, values in arrays.items()}


def expected_outputs(
    arrays: Mapping[str, Array], step: Step, slots: tuple[SlotSpec, ...], options: ExportOptions, *, last: bool = False
) -> dict[str, Array]:
    """What a graph must return for one step, as views of whole-case arrays.

    Args:
        arrays: ``logits`` and ``cache.N.*`` of the whole case; those that are there are given.
        step: The call.
        slots: Cache slots of the model.
        options: Say how many rows sliding slots keep.
        last: Whether the graph returns the logits of the last position only.

    Returns:
        ``logits`` and ``present.N.<part>`` by output name, in port order.
    """
    first = step.stop - 1 if last else step.start
    outputs: dict[str, Array] = {}
    if "logits" in arrays:
        outputs["logits"] = arrays["logits"][step.which, first : step.stop]
    for slot in slots:
        for part in slot.parts:
            array = arrays.get(cache_key(slot.slot, part))
            if array is not None and part in _STATES:
                outputs[present_name(slot.slot, part)] = array[step.which, step.index]
            elif array is not None:
                kept = options.kept_rows(slot, step.stop, step.peak)
                outputs[present_name(slot.slot, part)] = _newest(array[step.which], slot, part, step.stop, kept)
    return outputs


def expected_pasts(
    arrays: Mapping[str, Array], case: Case, step: Step, slots: tuple[SlotSpec, ...], options: ExportOptions
) -> dict[str, Array]:
    """What a call is to be fed with, by input name, from whole-case arrays; no rows, and zeros, at slot 0."""
    pasts: dict[str, Array] = {}
    for slot in slots:
        for part in slot.parts:
            array = arrays[cache_key(slot.slot, part)]
            if part in _STATES and step.start:
                calls, rows = zip(*case.sources(step), strict=True)
                found = array[list(rows), list(calls)]
            elif part in _STATES:
                found = np.zeros_like(array[step.which, 0])
            else:
                kept = options.kept_rows(slot, step.start, step.reached)
                found = _newest(array[step.which], slot, part, step.start, kept)
            pasts[past_name(slot.slot, part)] = found
    return pasts


def _newest(array: Array, slot: SlotSpec, part: str, stop: int, kept: int) -> Array:
    """The newest rows of keys or values up to a slot; of a convolution its columns, zeros before the first."""
    if part != "conv_state":
        return array[:, :, stop - kept : stop]
    columns = slot.shape(part, 1, 0)[-1]
    newest = array[:, :, max(stop - columns, 0) : stop]
    return np.pad(newest, ((0, 0), (0, 0), (columns - newest.shape[2], 0)))


class Recorder:
    """Collects outputs call by call and proves that cache rows never change once written."""

    def __init__(self, case: Case, slots: tuple[SlotSpec, ...]) -> None:
        self._case, self._slots = case, slots
        self._logits: list[Array] = []
        self._rows: dict[str, list[Array]] = {}  # by key: along the axis of token slots, or one state per call

    def add(self, step: Step, outputs: Mapping[str, Array]) -> None:
        """Take the outputs of one step; caches must be full length, in sliding layers and convolutions too.

        Raises:
            TraceError: A row that an earlier step wrote came back different, or rows are missing.
        """
        self._logits.append(outputs["logits"])
        for slot in self._slots:
            for part in slot.parts:
                present = outputs[present_name(slot.slot, part)]
                if part in _STATES:
                    self._rows.setdefault(cache_key(slot.slot, part), []).append(present)
                    continue
                if present.shape[2] != step.stop:
                    raise TraceError(
                        f"case {self._case.name}, step {step.index}: slot {slot.slot} has {present.shape[2]} rows, "
                        f"expected {step.stop}; record with full-length caches"
                    )
                self._check_unchanged(step, slot, part, present[:, :, : step.start])
                self._rows.setdefault(cache_key(slot.slot, part), []).append(present[:, :, step.start :])

    def _check_unchanged(self, step: Step, slot: SlotSpec, part: str, old: Array) -> None:
        if old.shape[2] == 0:
            return
        known = np.concatenate(self._rows[cache_key(slot.slot, part)], axis=2)[:, :, -old.shape[2] :]
        if not np.array_equal(known, old, equal_nan=True):  # float16 may overflow in PyTorch itself
            raise TraceError(
                f"case {self._case.name}, step {step.index}: the reference changed a cache row of slot {slot.slot} "
                f"({part}) that an earlier step wrote; the cache contract assumes rows are written once"
            )

    def finish(self) -> dict[str, Array]:
        """Whole-case arrays by key."""
        return {
            "logits": np.concatenate(self._logits, axis=1),
            **{
                key: np.stack(rows, axis=1) if key.endswith(_STATES) else np.concatenate(rows, axis=2)
                for key, rows in self._rows.items()
            },
        }
