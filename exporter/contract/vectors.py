"""Reference vectors of one case: what PyTorch computed, small enough to ship and exact enough to judge rounding.

A cache row is written once and never changes, so the rows of the whole case are stored once and every step's
``present`` is a slice of them (checked while recording). The float64 result is stored as its float32 difference from
the float32 one: |difference| is about 1e-5, so the sum is exact to about 1e-12 at half the bytes.

Keys of the ``.npz``: ``input_ids, attention_mask, position_ids`` (batch, total) int64; ``chunks`` (steps,) int64;
``first`` (the first call's graph); ``logits`` (batch, total, vocab); ``cache.N.key`` and ``cache.N.value``
(batch, kv_heads, total, head_dim); ``cache.N.conv_state`` (batch, channels, total), the column that each token adds;
``cache.N.recurrent_state`` and ``cache.N.ssm_state`` (batch, calls, …), the state after each call; each of the float
tensors again as ``float64_delta/<key>``.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvparity.exporter.contract.cases import Case, Step
from kvparity.exporter.contract.errors import TraceError
from kvparity.exporter.contract.spec import DECODE, PREFILL, SlotSpec, present_name

__all__ = ["Recorder", "Vectors", "cache_key", "deltas_of", "expected_outputs", "held"]

Array = npt.NDArray[np.generic]
_DELTA = "float64_delta/"
_STATES = ("recurrent_state", "ssm_state")  # rewritten by every call


def cache_key(slot: int, part: str) -> str:
    """Key of a slot's rows in a vectors file."""
    return f"cache.{slot}.{part}"


@dataclass(frozen=True, eq=False)
class Vectors:
    """One case and what the reference computed for it.

    Attributes:
        case: The tokens and calls.
        arrays: ``logits`` and ``cache.N.key/value`` over the whole case, by key.
        deltas: float64 result minus ``arrays``, by the same keys; empty where none was recorded. In float32, which
            keeps the result to 1e-13 where ``arrays`` are off by 1e-6; in float64 for bundles that compute coarser.
    """

    case: Case
    arrays: Mapping[str, Array]
    deltas: Mapping[str, Array] = field(default_factory=dict)

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
        return {key: self.arrays[key].astype(np.float64) + self.deltas[key].astype(np.float64) for key in self.arrays}

    def save(self, path: Path) -> None:
        """Write the ``.npz``; the same vectors give the same bytes."""
        case = self.case
        arrays: dict[str, Array] = {
            "input_ids": case.tokens,
            "attention_mask": case.mask,
            "position_ids": case.positions,
            "chunks": np.asarray(case.chunks, np.int64),
            "first": np.asarray(case.first),
            "why": np.asarray(case.why),
            **self.arrays,
            **{_DELTA + key: value for key, value in self.deltas.items()},
        }
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for key, value in arrays.items():
                entry = zipfile.ZipInfo(f"{key}.npy", date_time=(1980, 1, 1, 0, 0, 0))
                with archive.open(entry, "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, np.asarray(value, order="C"), allow_pickle=False)

    @staticmethod
    def load(path: Path, name: str, *, inputs_only: bool = False) -> Vectors:
        """Read a ``.npz`` written by :meth:`save`; ``inputs_only`` accepts one without results.

        Raises:
            TraceError: The file is unreadable or lacks a key of the format.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                data = {key: archive[key] for key in archive.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise TraceError(f"{path}: not a readable .npz of reference vectors ({error})") from error
        missing = {
            "input_ids",
            "attention_mask",
            "chunks",
            "first",
            *(() if inputs_only else ("logits",)),
        } - data.keys()
        if missing:
            raise TraceError(f"{path}: reference vectors lack {', '.join(sorted(missing))}; found {sorted(data)[:8]}")
        pads = tuple(int(n) for n in (data["attention_mask"] == 0).sum(axis=1))
        chunks = tuple(int(n) for n in data["chunks"])
        first = DECODE if data["first"].item() == DECODE else PREFILL
        case = Case(name, data["input_ids"], chunks, pads, first, str(data.get("why", np.asarray("")).item()))
        floats = {key: data[key] for key in data if key == "logits" or key.startswith("cache.")}
        deltas = {key.removeprefix(_DELTA): data[key] for key in data if key.startswith(_DELTA)}
        return Vectors(case, floats, deltas)


def deltas_of(wide: Mapping[str, Array], arrays: Mapping[str, Array], *, coarse: bool) -> dict[str, Array]:
    """What :class:`Vectors` keeps of a float64 result.

    Args:
        wide: The float64 result.
        arrays: What the reference computed in the bundle's dtype.
        coarse: Whether that rounds to fewer bits than float32: a difference of 1e-2 in float32 is off by 5e-10.
    """
    dtype = np.float64 if coarse else np.float32
    return {key: (wide[key] - values.astype(np.float64)).astype(dtype) for key, values in arrays.items()}


def expected_outputs(
    arrays: Mapping[str, Array], step: Step, slots: tuple[SlotSpec, ...], *, bounded: bool = True, last: bool = False
) -> dict[str, Array]:
    """What a graph must return for one step, as views of whole-case arrays.

    Args:
        arrays: ``logits`` and ``cache.N.*`` of the whole case.
        step: The call.
        slots: Cache slots of the model.
        bounded: Whether sliding slots keep at most window - 1 rows.
        last: Whether the graph returns the logits of the last position only.

    Returns:
        ``logits`` and ``present.N.<part>`` by output name, in port order.
    """
    first = step.stop - 1 if last else step.start
    outputs: dict[str, Array] = {"logits": arrays["logits"][:, first : step.stop]}
    for slot in slots:
        for part in slot.parts:
            array = arrays[cache_key(slot.slot, part)]
            outputs[present_name(slot.slot, part)] = held(array, slot, part, step.stop, step.index + 1, bounded)
    return outputs


def held(array: Array, slot: SlotSpec, part: str, stop: int, calls: int, bounded: bool = True) -> Array:
    """What a part of a slot holds after some calls, from its array of the whole case.

    Args:
        array: ``cache.N.<part>`` of :class:`Vectors`.
        slot: The slot.
        part: The part.
        stop: Token slots after those calls.
        calls: How many calls they were.
        bounded: Whether a sliding slot keeps at most window - 1 rows.
    """
    if part in ("key", "value"):
        return array[:, :, stop - slot.kept_rows(stop, bounded) : stop]
    if part != "conv_state":
        return array[:, calls - 1] if calls else np.zeros_like(array[:, 0])
    columns = slot.shape(part, 1, 0)[-1]
    newest = array[:, :, max(stop - columns, 0) : stop]
    return np.pad(newest, ((0, 0), (0, 0), (columns - newest.shape[2], 0)))


class Recorder:
    """Collects one case's outputs step by step and proves that cache rows never change once written."""

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
