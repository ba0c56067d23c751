"""Speed of bundles on runners, side by side in one run.

Every round visits every subject, so that a busy moment of the machine meets them all; medians with their spread, and
the ratio to the fastest.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.errors import EngineUnavailableError, KvparityError, TraceError
from kvparity.runners.base import RunnerSpec
from kvparity.runners.bench.options import BenchOptions
from kvparity.runners.decode.decoders import Decoder, open_decoder

__all__ = ["BenchOptions", "Measure", "Subject", "Times", "bench", "measure"]


@dataclass(frozen=True)
class Subject:
    """Something that decodes: its name, how to open it, and what it keeps per token."""

    name: str
    open: Callable[[], Decoder]
    vocab_size: int
    max_position: int
    cache_bytes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Times:
    """Median and quartiles of repeated timings, in seconds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Times:
        """Summarise timings; at least one."""
        values = np.asarray(seconds)
        low, high = np.quantile(values, [0.25, 0.75])
        return cls(statistics.median(seconds), float(low), float(high))


@dataclass(frozen=True)
class Measure:
    """What one subject needed.

    Attributes:
        name: Of the subject.
        load: Seconds to open it, the first prompt included.
        memory_mb: Growth of this process's resident memory while it was opened and first used; of an engine in a
            process of its own, that process's too.
        prefill: Seconds of the timed prefill.
        decode: Seconds per token by context.
        cache_bytes: Bytes of cache per token, by kind of slot: ``full`` grows, ``sliding`` stops at the window.
    """

    name: str
    load: float
    memory_mb: float
    prefill: Times
    decode: Mapping[int, Times]
    cache_bytes: Mapping[str, int]


def subject(bundle: Bundle, runner: RunnerSpec, label: str) -> Subject:
    """A bundle on a runner."""
    cache: dict[str, int] = {}
    for slot in bundle.model.slots:
        if slot.kv_heads:
            cache[slot.kind] = cache.get(slot.kind, 0) + slot.row_bytes(bundle.options.dtype)
    model = bundle.model
    longest = bundle.options.max_len or model.max_position
    return Subject(label, lambda: open_decoder(bundle, runner), model.vocab_size, longest, cache)


def measure(
    subjects: Sequence[Subject], options: BenchOptions, report: Callable[[str], None] = lambda line: None
) -> list[Measure]:
    """Time every subject, interleaved.

    Raises:
        TraceError: A context does not fit a subject's positions.
    """
    longest = max(*options.contexts, options.prefill) + options.steps
    for item in subjects:
        if longest > item.max_position:
            raise TraceError(f"{item.name}: {longest} tokens are needed, it has {item.max_position} positions")
    ids = np.random.default_rng(0).integers(3, min(item.vocab_size for item in subjects), longest)
    opened: list[tuple[Subject, Decoder, float, float]] = []
    prefill: dict[str, list[float]] = {item.name: [] for item in subjects}
    decode: dict[str, dict[int, list[float]]] = {item.name: {c: [] for c in options.contexts} for item in subjects}
    try:
        for item in subjects:
            before, start = _resident_mb(), time.perf_counter()
            decoder = item.open()
            decoder.feed(ids[: options.prefill])
            memory = _resident_mb() - before + _resident_mb(getattr(decoder, "pid", None))
            opened.append((item, decoder, time.perf_counter() - start, memory))
        for round_index in range(options.rounds):
            report(f"round {round_index + 1} of {options.rounds}")
            for item, decoder, _, _ in opened:
                prefill[item.name].append(_time_prefill(decoder, ids[: options.prefill]))
                for context in options.contexts:
                    decode[item.name][context] += _time_steps(decoder, ids, context, options.steps)
    finally:
        for _, decoder, _, _ in opened:
            decoder.close()
    return [
        Measure(
            item.name,
            load,
            memory,
            Times.of(prefill[item.name]),
            {context: Times.of(times) for context, times in decode[item.name].items()},
            item.cache_bytes,
        )
        for item, _, load, memory in opened
    ]


def _time_prefill(decoder: Decoder, ids: npt.NDArray[np.int64]) -> float:
    decoder.reset()
    return _time_call(decoder, ids)


def _time_steps(decoder: Decoder, ids: npt.NDArray[np.int64], context: int, steps: int) -> list[float]:
    """Seconds of each step; the first one after a prompt rebinds buffers and is not counted."""
    decoder.reset()
    decoder.feed(ids[: context - 1])
    decoder.feed(ids[context - 1 : context])
    seconds: list[float] = []
    for index in range(context, context + steps):
        seconds.append(_time_call(decoder, ids[index : index + 1]))
    return seconds


def _time_call(decoder: Decoder, ids: npt.NDArray[np.int64]) -> float:
    """Seconds of one call, without what pipes to an engine's process took."""
    start, waited = time.perf_counter(), getattr(decoder, "waited", 0.0)
    decoder.feed(ids)
    return float(time.perf_counter() - start - (getattr(decoder, "waited", 0.0) - waited))


def _resident_mb(process: int | Literal["self"] | None = "self") -> float:
    """Resident memory of a process; 0 where there is none or the system does not tell."""
    if process is None:
        return 0.0
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0.0
    return pages * 4096 / 2**20


def bench(
    bundles: Sequence[Bundle],
    runners: Sequence[RunnerSpec],
    options: BenchOptions,
    say: Callable[[str], None] = lambda line: None,
) -> list[Measure]:
    """Measure every bundle on every runner.

    Args:
        bundles: Opened bundles.
        runners: Engines.
        options: What is measured.
        say: Takes one line of progress at a time, and why an engine could not be measured.

    Raises:
        KvparityError: Nothing could be measured; one absent engine is only said.
    """
    subjects: list[Subject] = []
    absent: list[KvparityError] = []
    for bundle in bundles:
        for spec in runners:
            label = f"{bundle.root.name} {spec}" if len(bundles) > 1 else str(spec)
            try:
                open_decoder(bundle, spec).close()
            except EngineUnavailableError as error:
                absent.append(error)
                say(f"{label}: {error}")
                continue
            subjects.append(subject(bundle, spec, label))
    if not subjects:
        raise absent[0]
    return measure(subjects, options, say)
