"""Records reference vectors: PyTorch in the bundle's dtype, call by call, and in float64 over the whole sequence.

The float64 run uses no cache between calls: it anchors rounding and, at the same time, would expose a fault in the
reference's own caching.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np

from kvparity.exporter.contract.bundle import Bundle, CaseEntry, Recording, file_entry, unrecorded_case
from kvparity.exporter.contract.cases import Case
from kvparity.exporter.contract.checkpoint_files import CheckpointFiles
from kvparity.exporter.contract.spec import PREFILL, ExportOptions, ModelSpec
from kvparity.exporter.contract.vectors import Recorder, Vectors, deltas_of
from kvparity.runners.base import Array, Session
from kvparity.runners.decode.layouts.dynamic import Player
from kvparity.runners.diff.names import axis_of, is_state

__all__ = ["record_cases", "recorder", "reference_arrays"]

OnCase = Callable[[Case, int, int], None]


def record_cases(
    bundle: Bundle,
    cases: Sequence[Case],
    checkpoint: CheckpointFiles,
    *,
    float64: bool = True,
    budget_mb: int = 256,
    mode: str = "auto",
    on_case: OnCase = lambda case, index, count: None,
) -> Recording:
    """Record every case that fits the size budget into ``<bundle>/cases``.

    Args:
        bundle: The bundle being written; what the model is, and where the cases go.
        cases: What to record.
        checkpoint: What the reference is loaded from, by transformers and not by the exporter.
        float64: Record the float64 result as well.
        budget_mb: Size of all vectors together; a case that would not fit is listed without a file (vocabularies of
            262,144 need 1 MB per token).
        mode: ``whole`` holds PyTorch's model in memory, ``streamed`` one module's weights at a time (the same bits,
            all weights read once per call), ``auto`` streams where the model would take over half of what is free.
        on_case: Called before each case.
    """
    from kvparity.runners.engines.torch_eager import reference_session

    chosen = _within(cases, bundle, budget_mb * 1_000_000, float64)
    folder = bundle.root / "cases"
    recorded: dict[str, Vectors] = {}
    own = bundle.options.dtype
    for dtype in (own, "float64") if float64 else (own,):
        session = (
            reference_session(bundle, dtype, checkpoint, streamed=_streams(bundle, mode, dtype)) if chosen else None
        )
        for index, case in enumerate(chosen):
            on_case(case, index, len(chosen))
            assert session is not None
            arrays = reference_arrays(session, bundle.model, case if dtype == own else _at_once(case))
            if dtype == own:
                recorded[case.name] = Vectors(case, arrays)
            else:
                base = recorded[case.name].arrays
                deltas = deltas_of(arrays, base, coarse=bundle.options.coarse)
                recorded[case.name] = Vectors(case, base, deltas)
    entries: list[CaseEntry] = []
    for case in cases:
        if case.name not in recorded:
            entries.append(unrecorded_case(bundle.root, case))
            continue
        folder.mkdir(exist_ok=True)
        path = folder / f"{case.name}.npz"
        recorded[case.name].save(path)
        entry = CaseEntry(case.name, case.batch, case.total, case.chunks, case.first, case.why)
        entries.append(replace(entry, file=file_entry(bundle.root, path)))
    return Recording(tuple(entries), _noise(list(recorded.values())))


def _streams(bundle: Bundle, mode: str, dtype: str) -> bool:
    """Whether PyTorch's model is streamed."""
    if mode != "auto" or bundle.options.quantize != "none":  # blocks are unpacked when the whole model is loaded
        return mode == "streamed"
    return bundle.model.parameters * {"float64": 8, "float32": 4}.get(dtype, 2) > _available_bytes() / 2


def _available_bytes() -> float:
    """Memory that can be had without swapping; unlimited where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return float("inf")


def recorder(
    *, float64: bool, budget_mb: int, on_case: OnCase, mode: str = "auto"
) -> Callable[[Bundle, Sequence[Case], CheckpointFiles], Recording]:
    """:func:`record_cases` with its settings, in the form that the exporter takes."""

    def record(bundle: Bundle, cases: Sequence[Case], checkpoint: CheckpointFiles) -> Recording:
        return record_cases(bundle, cases, checkpoint, float64=float64, budget_mb=budget_mb, mode=mode, on_case=on_case)

    return record


def reference_arrays(session: Session, model: ModelSpec, case: Case) -> dict[str, Array]:
    """Play a case through a reference session that returns full-length caches; whole-case arrays by key.

    Half types are widened, which keeps their values; the logits of the contract are float32 in any case.
    """
    player = Player(model, ExportOptions(dtype="float32"))
    recorder = Recorder(case, model.slots)
    for step in case.steps():
        recorder.add(step, player.run(session, step, case.inputs(step)))
    arrays = recorder.finish()
    return {name: array if array.itemsize > 2 else array.astype(np.float32) for name, array in arrays.items()}


def _at_once(case: Case) -> Case:
    return replace(case, chunks=(case.total,), first=PREFILL)


def _within(cases: Sequence[Case], bundle: Bundle, budget: int, float64: bool) -> list[Case]:
    """The cases, in order, that fit the budget together."""
    model = bundle.model
    per_slot, per_call = model.vocab_size, 0
    for slot, part in model.cache_names():
        shape = slot.shape(part, 1, 1)
        if part in ("key", "value", "conv_state"):  # the last is recorded as the column that each token adds
            per_slot += prod(shape[:2]) if part == "conv_state" else prod(shape)
        else:
            per_call += prod(shape)
    item = 4 + (8 if bundle.options.coarse else 4) * float64
    chosen: list[Case] = []
    for case in cases:
        size = case.batch * (case.total * per_slot + len(case.chunks) * per_call) * item
        if size <= budget:
            budget -= size
            chosen.append(case)
    return chosen


def _noise(recorded: Sequence[Vectors]) -> dict[str, float]:
    """Largest |float32 - float64| over live slots, for logits and for caches."""
    worst: dict[str, float] = {}
    for vectors in recorded:
        live = vectors.case.mask == 1
        for key, delta in vectors.deltas.items():
            kind = "logits" if key == "logits" else "cache"
            values = delta if is_state(key) else np.moveaxis(delta, axis_of(key), 1)[live]
            worst[kind] = max(worst.get(kind, 0.0), float(np.abs(values).max(initial=0.0)))
    return worst
