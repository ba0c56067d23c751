"""Drafts of four tokens of which 0 to 4 are kept, at, before and past the window, in every layout, against PyTorch.

``python -m benchmarks.going_back [--exact]``: the shipped checkpoint with ``--rewind 4`` and, with drafts spliced or
replayed instead, without. Printed are largest differences of logits from PyTorch in the graphs' own dtype, with
``--exact`` in float64, and how far PyTorch's float32 is from its float64 there: the further a position is, the more the
angle of its rotary embedding is rounded.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from kvparity.exporter.checkpoint.source import resolve
from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.cases import Case, Move, Step
from kvparity.exporter.contract.spec import DECODE, PREFILL, ExportOptions
from kvparity.exporter.export import export
from kvparity.runners.base import RunnerSpec, Session
from kvparity.runners.decode.play import open_player, play
from kvparity.runners.isolation.process import open_runner
from kvparity.runners.reference.record import record_cases
from tests.conftest import TINY

DRAFT, AFTER = 4, 4
LAYOUTS = {
    "dynamic": ExportOptions(),
    "static": ExportOptions(layout="static", max_len=1024, chunk=64),
    "shared": ExportOptions(layout="shared", profile="ort"),
}
Floats = npt.NDArray[np.float64]


def main() -> None:
    """Export, play, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exact", action="store_true", help="evaluate the graphs in float64")
    parser.add_argument("--layout", choices=LAYOUTS, action="append")
    parser.add_argument("--folder", type=Path, help="keeps the bundles, for the next run")
    given = parser.parse_args()
    runner = RunnerSpec("exact") if given.exact else RunnerSpec("ort", {"threads": "1"})
    with TemporaryDirectory() as name:
        folder = given.folder or Path(name)
        recorded = _exported(folder / "recorded", ExportOptions(), recorded=True)
        vectors = recorded.vectors("prefill-1000")
        tokens, exact = vectors.case.tokens[0], np.asarray(vectors.float64()["logits"][0])
        single = vectors.arrays["logits"][0].astype(np.float64)
        own = np.maximum(np.abs(single - exact).max(axis=1), vectors.pieces["logits"][0])
        wanted = exact if given.exact else single
        print("| layout | rewind | place | 0 to 4 kept of 4 | PyTorch's own |\n|---|---|---|---|---|")
        for layout in given.layout or LAYOUTS:
            for rewind in (DRAFT, 0):
                bundle = _exported(folder / f"{layout}-{rewind}", replace(LAYOUTS[layout], rewind=rewind))
                worst = measured(bundle, open_runner(bundle, runner), tokens, wanted, native=rewind > 0)
                for at, sizes in worst.items():
                    shown, error = ", ".join(f"{size:.2g}" for size in sizes), own[at : at + 3 * DRAFT].max()
                    print(f"| {layout} | {rewind} | {at} | {shown} | {error:.2g} |", flush=True)


def _exported(target: Path, options: ExportOptions, *, recorded: bool = False) -> Bundle:
    if target.is_dir():
        return Bundle.open(target)
    return export(resolve(str(TINY)), target, options, record=record_cases if recorded else None)


def places(window: int) -> list[int]:
    """60, W - 3 … W + 3, 2W and 5W tokens."""
    return [60, *range(window - 3, window + 4), 2 * window, 5 * window]


def measured(
    bundle: Bundle, session: Session, tokens: npt.NDArray[np.int64], wanted: Floats, *, native: bool
) -> dict[int, list[float]]:
    """Largest difference for every number of kept tokens, by place."""
    ways = _dropped if native else _spliced
    return {at: list(ways(bundle, session, tokens, wanted, at)) for at in places(bundle.model.window or 64)}


def _wrong(tokens: npt.NDArray[np.int64], vocab: int) -> npt.NDArray[np.int64]:
    return (tokens + 7) % vocab


def _apart(found: npt.NDArray[np.generic], wanted: Floats) -> float:
    return float(np.nan_to_num(np.abs(found.astype(np.float64) - wanted), nan=np.inf).max(initial=0.0))


def _dropped(
    bundle: Bundle, session: Session, tokens: npt.NDArray[np.int64], wanted: Floats, at: int
) -> Iterator[float]:
    """Two drafts in a row, the newest rows dropped, then four tokens one by one; one prompt for all."""
    first = open_player(bundle, session)
    first.run(session, Step(0, PREFILL, 0, at), _inputs(tokens[:at], 0))
    for kept in range(DRAFT + 1):
        player, start, reached, worst = deepcopy(first), at, at, 0.0
        for index, (count, good) in enumerate([(DRAFT, kept), (DRAFT, kept), *[(1, 1)] * AFTER], start=1):
            ids = tokens[start : start + count].copy()
            ids[good:] = _wrong(ids[good:], bundle.model.vocab_size)
            step = Step(index, DECODE, start, start + count, reached)
            logits = player.run(session, step, _inputs(ids, start))["logits"][0, :good]
            worst = max(worst, _apart(logits, wanted[start : start + good]))
            start, reached = start + good, step.peak
        yield worst


def _inputs(ids: npt.NDArray[np.int64], start: int) -> dict[str, npt.NDArray[np.int64]]:
    total = start + len(ids)
    positions = np.arange(start, total)[None]
    return {"input_ids": ids[None], "attention_mask": np.ones((1, total), np.int64), "position_ids": positions}


def _spliced(
    bundle: Bundle, session: Session, tokens: npt.NDArray[np.int64], wanted: Floats, at: int
) -> Iterator[float]:
    """A draft, its kept rows joined to older ones, then four tokens; the same replayed from before it; one prompt."""
    rows = np.tile(tokens[: at + DRAFT + AFTER], (DRAFT + 2, 1))
    calls, shares = [(at, Move(0, (0,)))], [0]
    for kept in range(DRAFT + 1):
        rows[kept + 1, at + kept :] = _wrong(rows[kept + 1, at + kept :], bundle.model.vocab_size)
        draft = len(calls)
        made = [(DRAFT, Move(at, (kept + 1,), ((0, 0),))), (1, Move(at + kept, (0,), ((draft, 0),)))]
        made += [(1, Move(at + kept + index, (0,))) for index in range(1, AFTER)]
        made.append((kept + 1, Move(at, (0,), ((0, 0),))))
        made += [(1, Move(at + kept + index, (0,))) for index in range(1, AFTER)]
        calls, shares = [*calls, *made], [*shares, *[kept] * len(made)]
    chunks, moves = zip(*calls, strict=True)
    worst = [0.0] * (DRAFT + 1)
    for result in play(bundle, session, Case("spliced", rows, chunks, (0,) * len(rows), moves=moves)):
        step, kept = result.step, shares[result.step.index]
        if step.rows == (0,) and step.start:
            worst[kept] = max(worst[kept], _apart(result.outputs["logits"][0], wanted[step.start : step.stop]))
    yield from worst


if __name__ == "__main__":
    main()
