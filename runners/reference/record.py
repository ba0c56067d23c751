"""Records reference vectors: one pass of PyTorch over each sequence in float64, one in the bundle's dtype.

Every case is a cut of a sequence (:mod:`exporter.contract.vectors`). The float64 pass is one call without any cache,
unless the attention scores of a sequence are too large for that: it anchors rounding and, at the same time, would
expose a fault in the reference's own caching. Whether a model gives the same when it is called in pieces is tried
first; one that does not (some state-space models) is recorded in the calls of each case.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from kvparity.exporter.contract.bundle import (
    Bundle,
    CaseEntry,
    HeadEntry,
    Recording,
    RowEntry,
    SequenceEntry,
    file_entry,
    unrecorded,
    write_case,
    write_sequence,
)
from kvparity.exporter.contract.cases import Case, IntArray, master_of, masters
from kvparity.exporter.contract.checkpoint_files import CheckpointFiles
from kvparity.exporter.contract.errors import BundleError, lines_of
from kvparity.exporter.contract.head import Head
from kvparity.exporter.contract.npz import write_npz
from kvparity.exporter.contract.spec import PREFILL, ExportOptions, ModelSpec
from kvparity.exporter.contract.vectors import (
    IN_PIECES,
    LARGEST,
    NOISE,
    SQUARES,
    Recorded,
    Recorder,
    cache_key,
    deltas_of,
)
from kvparity.runners.base import Array, Session
from kvparity.runners.decode.layouts.dynamic import Player
from kvparity.runners.reference.sample import Planned, Sample, plan_samples
from kvparity.runners.reference.self_check import check_logits
from kvparity.runners.reference.ties import Choices, draw_anew, near_ties, watch_choices

if TYPE_CHECKING:
    from kvparity.runners.reference.class_head import ClassHead

__all__ = ["default_budget", "record_cases", "recorder", "reference_arrays"]

OnSequence = Callable[[str, int, int], None]
Opener = Callable[[str], Session]
MEGABYTES = 256  # of reference vectors, unless 5 % of the weights are more
_SCORES = 1 << 28  # bytes that the attention scores of one call may take in one layer
_STREAMED = 1 << 32  # bytes of a model from which one module is held at a time
_TWICE = 200_000_000  # parameters of a model that is held twice, to draw tokens without near ties
_SAME = 1e-9  # relative, in float64: how far a model may be from itself when called in pieces
_TOP, _COLUMNS = 64, 256  # largest and fixed columns of rebuilt logits that replays in other languages compare
_STATES = ("recurrent_state", "ssm_state")
_CALLS, _LEAST, _SINGLE = 24, 7, 4  # calls of a sequence in pieces, tokens of the smallest, single tokens at its end
_BLOCK = 64  # positions whose logits are made at a time


def default_budget(bundle: Bundle) -> int:
    """Bytes of all reference vectors: the larger of 256 MB and 5 % of the weights."""
    return max(MEGABYTES * 1_000_000, sum(entry.bytes for entry in bundle.manifest.weights) // 20)


def record_cases(
    bundle: Bundle,
    cases: Sequence[Case],
    checkpoint: CheckpointFiles | None = None,
    *,
    float64: bool = True,
    budget_mb: float | None = None,
    mode: str = "auto",
    on_sequence: OnSequence = lambda name, index, count: None,
    opener: Opener | None = None,
    folder: Path | None = None,
    strict: bool = True,
) -> Recording:
    """Record every case into ``<bundle>/vectors``.

    Args:
        bundle: The bundle being written; what the model is, and where the vectors go.
        cases: What to record.
        checkpoint: What the reference is loaded from, by transformers and not by the exporter; None takes the bundle's
            own config and weights.
        float64: Record the float64 result as well.
        budget_mb: Megabytes of all vectors together; None takes :func:`default_budget`. Logits of large vocabularies
            are kept as the hidden states that enter the head, and cache rows as a sample, where all would take more.
        mode: ``whole`` holds PyTorch's model in memory, ``streamed`` one module's weights at a time (the same bits,
            all weights read once per pass), ``auto`` streams models of four gigabytes and more, or of half of what
            memory is free.
        on_sequence: Called before each sequence: its name, its number, and how many there are.
        opener: Opens PyTorch in a dtype given by name; the checkpoint's model where None.
        folder: Takes ``vectors``; the bundle's where None.
        strict: Whether every row of the bundle's head must be the checkpoint's; a judge goes on without the others.

    Raises:
        BundleError: PyTorch cannot run the model as the cases call it.
    """
    root = folder or bundle.root
    if not cases:
        return unrecorded(root, cases)
    budget = default_budget(bundle) if budget_mb is None else int(budget_mb * 1_000_000)
    made = _Recording(bundle, root, cases, float64, budget, on_sequence, strict)
    try:
        return made.record(opener or (lambda dtype: _open(bundle, mode, dtype, checkpoint)))
    except (RuntimeError, IndexError, TypeError) as error:  # what torch raises
        raise BundleError(
            f"{bundle.model.model_type}: PyTorch fails in a call of this model that the schedule has "
            f"({lines_of(error)[0]}); export with --vectors none to have the graphs without references"
        ) from error


def recorder(
    *, float64: bool, budget_mb: float | None, on_sequence: OnSequence, mode: str = "auto"
) -> Callable[[Bundle, Sequence[Case], CheckpointFiles], Recording]:
    """:func:`record_cases` with its settings, in the form that the exporter takes."""

    def record(bundle: Bundle, cases: Sequence[Case], checkpoint: CheckpointFiles) -> Recording:
        recording = record_cases(
            bundle, cases, checkpoint, float64=float64, budget_mb=budget_mb, mode=mode, on_sequence=on_sequence
        )
        check_logits(bundle, recording)
        return recording

    return record


def reference_arrays(session: Session, model: ModelSpec, case: Case) -> dict[str, Array]:
    """Play a case through a reference session that returns full-length caches; whole-case arrays by key.

    Half types are widened, which keeps their values; the logits of the contract are float32 in any case.
    """
    player = Player(model, ExportOptions(dtype="float32"))
    recorder = Recorder(case, model.slots)
    for step in case.steps():
        recorder.add(step, player.run(session, step, case.inputs(step)))
    return {name: _widened(array) for name, array in recorder.finish().items()}


def _widened(array: Array) -> Array:
    return array if array.itemsize > 2 else array.astype(np.float32)


def _open(bundle: Bundle, mode: str, dtype: str, checkpoint: CheckpointFiles | None) -> Session:
    from kvparity.runners.engines.torch_eager import reference_session

    size = bundle.model.parameters * (4 if bundle.options.dtype == "float32" else 2)
    packed = bundle.options.quantize != "none"  # blocks are unpacked when the whole model is loaded
    large = size > min(_STREAMED, _available_bytes() / 2)
    streamed = mode == "streamed" or (mode == "auto" and large and not packed)
    return reference_session(bundle, dtype, checkpoint, streamed=streamed)


def _available_bytes() -> float:
    """Memory that can be had without swapping; unlimited where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return float("inf")


class _Recording:
    """One recording: what is recorded, and the passes that make it."""

    def __init__(
        self,
        bundle: Bundle,
        root: Path,
        cases: Sequence[Case],
        float64: bool,
        budget: int,
        on_sequence: OnSequence,
        strict: bool,
    ) -> None:
        self.bundle, self.root, self.cases, self.float64 = bundle, root, cases, float64
        self.budget, self.say, self.strict = budget, on_sequence, strict
        self.item = 4 + (8 if bundle.options.coarse else 4) * float64  # bytes of a number and its float64 difference
        self.as_cut = False  # whether cases are recorded in their own calls
        self.cut = 0.0  # see Manifest
        self.head: Head | None = None
        self.products: npt.NDArray[np.float64] | None = None

    def record(self, opener: Opener) -> Recording:
        """Both passes; each model is opened, used and dropped before the next."""
        model = self.bundle.model
        wide: dict[str, dict[str, Array]] = {}
        choices: dict[str, Choices] = {}
        session = opener("float64")
        unread = getattr(session, "unread", "")
        self.cases = self._without_ties(opener, session)
        known = masters(self.cases)
        whole = sum(map(len, known.values())) * model.vocab_size * self.item
        if whole > min(self.budget, MEGABYTES * 1_000_000) // 4:
            self._find_head(session, min(known.values(), key=len)[:_BLOCK])
        self.as_cut = not self._agrees_when_cut(session, known)
        planned, entries = self._plan()
        samples = self._samples(planned)
        for item in planned if self.float64 else ():
            self.say(f"{item.name} in float64", planned.index(item), len(planned))
            with watch_choices() as choices[item.name]:
                wide[item.name] = self._pass(session, item, samples[item.name])
        session.close()
        del session
        gc.collect()  # hooks and modules hold each other, and two models are one too many
        session = opener(self.bundle.options.dtype)
        sequences, noise = [], dict[str, float]()
        for item in planned:
            self.say(item.name, planned.index(item), len(planned))
            sample = samples[item.name]
            with watch_choices() as own:
                arrays = self._pass(session, item, sample)
            ties = near_ties(len(item.tokens), own, choices.pop(item.name, Choices()))
            recorded = self._finish(session, item, sample, arrays, wide.pop(item.name, {}))
            for kind, size in _noise(recorded).items():
                noise[kind] = max(noise.get(kind, 0.0), size)
            file = write_sequence(self.root, item.name, recorded)
            logits: Literal["all", "hidden"] = "all" if self.head is None else "hidden"
            rows, stride = len(sample.rows), sample.stride
            tie = int(ties[0]) if len(ties) else None
            sequences.append(SequenceEntry(item.name, len(item.tokens), file, logits, rows, stride, item.chunks, tie))
        session.close()
        return Recording(entries, noise, tuple(sequences), self._head_entry(), self.cut, unread)

    def _without_ties(self, opener: Opener, session: Session) -> Sequence[Case]:
        """The cases with random tokens drawn anew where routing is a near tie, if the model can be held twice."""
        model = self.bundle.model
        if not self.float64 or "mixture of experts" not in model.features or model.parameters > _TWICE:
            return self.cases
        single = opener(self.bundle.options.dtype)

        def ties(tokens: IntArray) -> IntArray:
            case, choices = Case("ties", tokens[None], (len(tokens),), (0,)), []
            for each in (single, session):
                with watch_choices() as found:
                    reference_arrays(each, model, case)
                choices.append(found)
            return near_ties(len(tokens), *choices)

        try:
            return draw_anew(model, self.cases, ties)
        finally:
            single.close()

    def _find_head(self, session: Session, tokens: IntArray) -> None:
        """Look for the rule that rebuilds logits; without one they are recorded whole."""
        model = getattr(session, "model", None)
        if model is None:
            return
        from kvparity.runners.reference.class_head import ClassHead, find_head

        head = ClassHead(model)
        case = Case("head", tokens[None], (len(tokens),), (0,))
        with head.caught() as caught:
            caught.positions = range(len(tokens))
            (step,) = case.steps()
            logits = session.run(PREFILL, dict(case.inputs(step)))["logits"][0].astype(np.float64)
            hidden = caught.hidden[0][0].numpy().astype(np.float64)
        found = find_head(
            *(self.bundle, head, model.config.get_text_config(decoder=True)), hidden, logits, strict=self.strict
        )
        if found is not None:
            self.head, self.products = found
            self.head.check(self.products)

    def _head_entry(self) -> HeadEntry | None:
        if self.head is None or self.products is None:
            return None
        path = self.root / "vectors" / "head.npz"
        write_npz(path, {"products": self.products})
        return HeadEntry(self.head.rule, self.head.width, file_entry(self.root, path))

    def _agrees_when_cut(self, session: Session, known: Mapping[str, IntArray]) -> bool:
        """Whether the model gives the same in several calls as in one, across the window; notes by how much not."""
        longest = max(known.values(), key=len)
        switch = self.bundle.model.rope_switch
        if switch is not None and len(longest) > switch:  # keys of earlier calls keep the frequencies of those calls
            return False
        tokens = longest[: min((self.bundle.model.window or 32) + 4, 640)]
        if len(tokens) < 3:
            return True
        half = len(tokens) // 2
        chunks = (len(tokens) - half, half) if self.bundle.model.single_steps else (len(tokens) - 2, 1, 1)
        once, cut = (
            self._pass(session, Planned("cut", tokens, calls, frozenset()), Sample(np.arange(len(tokens))))
            for calls in ((len(tokens),), chunks)
        )
        keys = once.keys() - {"check_logits", "check_positions"}
        ends = {key: slice(-1, None) if key.endswith(_STATES) else slice(None) for key in keys}  # states: one per call
        apart = {key: _apart(once[key][end], cut[key][end]) for key, end in ends.items()}
        same = all(off <= _SAME * float(np.abs(once[key]).max(initial=0.0)) for key, off in apart.items())
        self.cut = 0.0 if same else max(apart.values())
        return same

    def _plan(self) -> tuple[list[Planned], tuple[CaseEntry, ...]]:
        """The sequences to record, and the cases as cuts of them."""
        if self.as_cut:
            return self._plan_as_cut()
        known = masters(self.cases)
        edges: dict[str, set[int]] = {name: set() for name in known}
        for case in self.cases:
            for row in range(case.batch):
                name = master_of(case.row(row), known)
                assert name is not None
                edges[name] |= {-case.pads[row], *case.ends(row)}
        planned = [
            Planned(name, tokens, self._calls(len(tokens), edges[name]), frozenset(edges[name]))
            for name, tokens in known.items()
        ]
        return planned, tuple(write_case(self.root, case, known) for case in self.cases)

    def _plan_as_cut(self) -> tuple[list[Planned], tuple[CaseEntry, ...]]:
        """A sequence per row of every case, recorded in that row's own calls."""
        planned, entries = [], []
        for case in self.cases:
            rows = []
            for row in range(case.batch):
                stops = sorted({*case.ends(row), len(case.row(row))})
                chunks = tuple(stop - max(start, 0) for start, stop in pairwise([0, *stops]) if stop > 0)
                name = case.name if case.batch == 1 else f"{case.name}-row-{row}"
                planned.append(Planned(name, case.row(row), chunks, frozenset({0, *stops})))
                rows.append(RowEntry(name, case.pads[row]))
            entries.append(replace(write_case(self.root, case, {}), rows=tuple(rows)))
        return planned, tuple(entries)

    def _calls(self, total: int, edges: set[int]) -> tuple[int, ...]:
        """Calls of the reference's pass: one, unless attention scores would be too large or states are wanted between.

        A state is rewritten by every call, so that the ones at the edges of cases are had by calls that end there.
        """
        most = max(_SCORES // (8 * max(self.bundle.model.heads, 1) * total), 1)
        stops = {*range(most, total, most), total}
        if any(key.endswith(_STATES) for key in self._cache_keys()):
            stops |= {edge for edge in edges if 0 < edge < total}
        return tuple(stop - start for start, stop in pairwise([0, *sorted(stops)]))

    def _cache_keys(self) -> list[str]:
        return [cache_key(slot.slot, part) for slot, part in self.bundle.model.cache_names()]

    def _samples(self, planned: Sequence[Planned]) -> dict[str, Sample]:
        """Cache rows that fit beside what else is kept."""
        model = self.bundle.model
        total, calls = sum(len(item.tokens) for item in planned), sum(len(item.chunks) for item in planned)
        if self.head is None:
            other = total * model.vocab_size * self.item
        else:
            fixed = 8 * self.head.size * (3 + sum(len(_checks(item)) for item in planned))
            other = total * (self.head.width * self.item + 24 + 8 * _TOP + 4 * _COLUMNS) + fixed
        row = 0
        for slot, part in model.cache_names():
            size = prod(slot.shape(part, 1, 1)) * self.item
            if part in ("key", "value"):
                row += size
            else:  # a convolution is kept as the column that each token adds
                other += total * size // slot.shape(part, 1, 1)[-1] if part == "conv_state" else calls * size
        return plan_samples(model, planned, row, self.budget - other)

    def _pass(self, session: Session, item: Planned, sample: Sample) -> dict[str, Array]:
        """What the reference computes for a sequence: logits, or what enters the head, and cache rows."""
        case = Case(item.name, item.tokens[None], item.chunks, (0,))
        if self.head is None:
            arrays = {key: array[0] for key, array in reference_arrays(session, self.bundle.model, case).items()}
            return _sampled(arrays, sample)
        from kvparity.runners.reference.class_head import ClassHead

        model = self.bundle.model
        player, made = Player(model, ExportOptions(dtype="float32")), Recorder(case, model.slots)
        whole: dict[int, Array] = {}
        with ClassHead(session.model).caught() as caught:  # type: ignore[attr-defined]
            for step in case.steps():
                at = [position for position in _checks(item) if step.start <= position < step.stop]
                caught.positions = [position - step.start for position in at]
                outputs = player.run(session, step, case.inputs(step))
                whole |= dict(zip(at, outputs["logits"][0], strict=False))
                hidden = caught.hidden.pop()
                wide = hidden if hidden.itemsize > 2 else hidden.float()
                made.add(step, {**outputs, "logits": wide.numpy()})
        arrays = {key: _widened(array[0]) for key, array in made.finish().items()}
        arrays["hidden"] = arrays.pop("logits")
        checks = np.asarray(sorted(whole), np.int64)
        logits = np.stack([_widened(whole[position]) for position in checks.tolist()])
        return {**_sampled(arrays, sample), "check_positions": checks, "check_logits": logits}

    def _finish(
        self, session: Session, item: Planned, sample: Sample, arrays: dict[str, Array], wide: Mapping[str, Array]
    ) -> Recorded:
        """The pass in the bundle's dtype, put together with the float64 one."""
        names = [key for key in arrays if key.startswith("check_")]
        extra = {key: arrays.pop(key) for key in names}
        extra |= {key: wide[key] for key in extra if key in wide}
        deltas = deltas_of(wide, arrays, coarse=self.bundle.options.coarse) if wide else {}
        if len(sample.rows) < len(item.tokens):
            extra["rows"] = sample.rows
        if any(key.endswith(_STATES) for key in arrays):
            extra["stops"] = np.cumsum(item.chunks)
        pieces = replace(item, chunks=_pieces(len(item.tokens)))
        again = self._pass(session, pieces, sample) if wide and not self.as_cut else {}
        extra |= {
            IN_PIECES + key.replace(".", "/"): _errors(key, array, wide[key])
            for key, array in again.items()
            if _by_slot(key)
        }
        recorded = Recorded(item.tokens, arrays, deltas, extra)
        if self.head is None:
            return recorded
        from kvparity.runners.reference.class_head import ClassHead

        model = session.model  # type: ignore[attr-defined]
        dtype = model.get_input_embeddings().weight.dtype
        made = _logits(self.head, ClassHead(model), dtype, recorded, again.get("hidden"))
        return replace(recorded, extra={**extra, **made})


def _sampled(arrays: Mapping[str, Array], sample: Sample) -> dict[str, Array]:
    """The same with the rows of keys and values that are kept."""
    return {key: a[:, sample.rows] if key.endswith((".key", ".value")) else a for key, a in arrays.items()}


def _apart(first: Array, second: Array) -> float:
    difference = first.astype(np.float64) - second.astype(np.float64)
    return float(np.abs(difference).max(initial=0.0))


def _checks(item: Planned) -> list[int]:
    """Positions whose whole logits are kept as the class gave them."""
    total = len(item.tokens)
    return sorted({0, total // 2, total - 1})


def _pieces(total: int) -> tuple[int, ...]:
    """A sequence in up to :data:`_CALLS` calls of several tokens, and its last tokens one by one."""
    size = max(_LEAST, -(-total // _CALLS))
    body = max(total - _SINGLE, 0)
    return (*[size] * (body // size), *([body % size] if body % size else []), *[1] * (total - body))


def _by_slot(key: str) -> bool:
    """Whether a tensor has a row per token: not states, which a call rewrites, nor what enters the head."""
    return key != "hidden" and not key.startswith("check_") and not key.endswith((*_STATES, "conv_state"))


def _errors(key: str, single: Array, wide: Array) -> Array:
    """(rows,): the largest difference at each row of logits (rows, vocab) or of a cache (kv_heads, rows, head_dim)."""
    difference = np.abs(single.astype(np.float64) - wide.astype(np.float64))
    return np.asarray(difference.max(axis=1 if key == "logits" else (0, 2), initial=0.0), np.float32)


def _logits(head: Head, own: ClassHead, dtype: Any, recorded: Recorded, again: Array | None = None) -> dict[str, Array]:
    """PyTorch's own error of the logits of every position, and what replays in other languages compare.

    Args:
        head: Rebuilds logits in float64.
        own: The class's own head.
        dtype: What it computes in.
        recorded: The sequence.
        again: What entered the head when the sequence was given in pieces.
    """
    columns = np.sort(np.random.default_rng(2).choice(head.size, min(_COLUMNS, head.size), replace=False))
    parts: dict[str, list[Array]] = {}
    hidden = recorded.arrays["hidden"]
    for start in range(0, len(hidden), _BLOCK):
        single: Any = head.rule.finish(own.product(hidden[start : start + _BLOCK], dtype))
        top = np.argpartition(single, max(head.size - _TOP, 0), axis=1)[:, -_TOP:]
        top = np.take_along_axis(top, np.argsort(-np.take_along_axis(single, top, 1), 1, kind="stable"), 1)
        made = {
            "top_ids": top.astype(np.int32),
            "top_logits": np.take_along_axis(single, top, 1).astype(np.float32),
            "column_logits": single[:, columns].astype(np.float32),
        }
        if recorded.deltas:
            wide = head.logits(recorded.entering(start, start + _BLOCK))
            wide[:, head.wrong] = single[:, head.wrong]
            noise = np.empty((len(wide), 3))
            noise[:, LARGEST] = np.abs(wide).max(axis=1)
            wide -= single
            noise[:, NOISE], noise[:, SQUARES] = np.abs(wide).max(axis=1), np.einsum("ij,ij->i", wide, wide)
            if again is not None:
                other = head.rule.finish(own.product(again[start : start + _BLOCK], dtype))
                other -= single
                other -= wide  # wide is the float64 logits less ``single`` by now
                other[:, head.wrong] = 0
                noise[:, NOISE] = np.maximum(noise[:, NOISE], np.abs(other).max(axis=1))
            made["logits_noise"] = noise
        for key, value in made.items():
            parts.setdefault(key, []).append(value)
    found = {key: np.concatenate(values) for key, values in parts.items()}
    return {**found, "column_ids": columns.astype(np.int32)}


def _noise(recorded: Recorded) -> dict[str, float]:
    """Largest |float32 - float64| of the logits and of the caches, whole or in pieces."""
    found: dict[str, float] = {}
    for name, errors in recorded.extra.items():
        if name.startswith(IN_PIECES):
            kind = "logits" if name.endswith("logits") else "cache"
            found[kind] = max(found.get(kind, 0.0), float(errors.max(initial=0.0)))
    for key, delta in recorded.deltas.items():
        if key != "hidden":
            kind = "logits" if key == "logits" else "cache"
            found[kind] = max(found.get(kind, 0.0), float(np.abs(delta).max(initial=0.0)))
    if "logits_noise" in recorded.extra:
        rebuilt = float(recorded.extra["logits_noise"][:, NOISE].max(initial=0.0))
        found["logits"] = max(found.get("logits", 0.0), rebuilt)
    return found
