"""Speed of bundles on runners, side by side in one run.

Every round visits every subject, so that a busy moment of the machine meets them all; medians with their spread, and
the ratio to the fastest.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.errors import EngineUnavailableError, KvparityError, TraceError
from kvparity.exporter.contract.files import write_whole
from kvparity.runners.base import RunnerSpec, parse_runner
from kvparity.runners.decode.decoders import Decoder, open_decoder

__all__ = ["BenchOptions", "Measure", "Subject", "Times", "bench", "bench_command", "measure"]

CONTEXTS = (64, 512, 1000)


@dataclass(frozen=True)
class BenchOptions:
    """What is measured.

    Attributes:
        contexts: Tokens in the cache when decoding is timed.
        prefill: Tokens of the timed prefill.
        rounds: Visits of every subject.
        steps: Decode steps timed in a row at each context.
    """

    contexts: tuple[int, ...] = CONTEXTS
    prefill: int = 512
    rounds: int = 7
    steps: int = 16


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
        memory_mb: Growth of this process's resident memory while it was opened and first used.
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
            opened.append((item, decoder, time.perf_counter() - start, _resident_mb() - before))
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
    start = time.perf_counter()
    decoder.feed(ids)
    return time.perf_counter() - start


def _time_steps(decoder: Decoder, ids: npt.NDArray[np.int64], context: int, steps: int) -> list[float]:
    """Seconds of each step; the first one after a prompt rebinds buffers and is not counted."""
    decoder.reset()
    decoder.feed(ids[: context - 1])
    decoder.feed(ids[context - 1 : context])
    seconds: list[float] = []
    for index in range(context, context + steps):
        start = time.perf_counter()
        decoder.feed(ids[index : index + 1])
        seconds.append(time.perf_counter() - start)
    return seconds


def _resident_mb() -> float:
    """Resident memory of this process; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0.0
    return pages * 4096 / 2**20


def bench(
    bundles: Sequence[Path], runners: Sequence[str], options: BenchOptions, *, allow_modified: bool = False
) -> list[Measure]:
    """Measure every bundle on every runner.

    Raises:
        KvparityError: Nothing could be measured; one absent engine is only reported.
    """
    import sys

    subjects: list[Subject] = []
    absent: list[KvparityError] = []
    for path in bundles:
        bundle = Bundle.open(path, allow_modified=allow_modified)
        for text in runners:
            label = f"{path.name} {text}" if len(bundles) > 1 else text
            spec = parse_runner(text)
            try:
                open_decoder(bundle, spec).close()
            except EngineUnavailableError as error:
                absent.append(error)
                print(f"{label}: {error}", file=sys.stderr)
                continue
            subjects.append(subject(bundle, spec, label))
    if not subjects:
        raise absent[0]
    return measure(subjects, options, lambda line: print(line, file=sys.stderr))


def table(measures: Sequence[Measure], options: BenchOptions) -> str:
    """A plain text table; ratios are to the fastest at that context."""
    rows = _cells(measures, options)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def page(measures: Sequence[Measure], options: BenchOptions) -> str:
    """The same figures as an HTML page, with a plot of milliseconds per token against context."""
    from kvparity.runners.report.speed import speed_page

    head, *rows = _cells(measures, options)
    contexts = sorted(set(options.contexts))
    shown = [
        (item.name, tuple(item.decode[context].median * 1000 for context in contexts), tuple(row[1:]))
        for item, row in zip(measures, rows, strict=True)
    ]
    return speed_page(contexts, shown, head)


def _cells(measures: Sequence[Measure], options: BenchOptions) -> list[list[str]]:
    """The table: titles, then one row per subject."""
    best = {context: min(m.decode[context].median for m in measures) for context in options.contexts}
    header = ["", *(f"ms @{context}" for context in options.contexts), f"prefill {options.prefill} tok/s"]
    rows = [[*header, "load s", "memory MB", "cache B/token full + sliding"]]
    for item in measures:
        cells = [item.name]
        for context in options.contexts:
            times = item.decode[context]
            spread = f"{times.low * 1000:.3f}–{times.high * 1000:.3f}"
            cells.append(f"{times.median * 1000:.3f} ({spread}) {times.median / best[context]:.2f}x")
        cells += [f"{options.prefill / item.prefill.median:.0f}", f"{item.load:.2f}", f"{item.memory_mb:.0f}"]
        cells.append(" + ".join(str(item.cache_bytes.get(kind, 0)) for kind in ("full", "sliding")))
        rows.append(cells)
    return rows


def as_json(measures: Sequence[Measure], options: BenchOptions) -> dict[str, Any]:
    """The measures as plain data, times in milliseconds."""

    def times(item: Times) -> dict[str, float]:
        return {name: round(getattr(item, name) * 1000, 5) for name in ("median", "low", "high")}

    return {
        "schema_version": 1,
        "contexts": list(options.contexts),
        "prefill_tokens": options.prefill,
        "results": [
            {
                "name": item.name,
                "load_s": round(item.load, 3),
                "memory_mb": round(item.memory_mb, 1),
                "prefill_ms": times(item.prefill),
                "decode_ms": {str(context): times(item.decode[context]) for context in options.contexts},
                "cache_bytes_per_token": dict(item.cache_bytes),
            }
            for item in measures
        ],
    }


def bench_command(
    bundles: Sequence[Path],
    runners: Sequence[str],
    options: BenchOptions,
    json_file: str | None,
    *,
    html: Path | None = None,
    allow_modified: bool = False,
) -> int:
    """The ``bench`` command: a table on stdout, or JSON in a file or on stdout (``-``), and a page with a plot.

    Returns:
        0.
    """
    measures = bench(bundles, runners or ("ort",), options, allow_modified=allow_modified)
    text = json.dumps(as_json(measures, options), indent=1)
    if html is not None:
        write_whole(html, page(measures, options))
    if json_file == "-":
        print(text)
        return 0
    if json_file:
        write_whole(Path(json_file), text + "\n")
    print(table(measures, options))
    return 0
