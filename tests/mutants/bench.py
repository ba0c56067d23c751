"""Tries mutants in worker processes."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.queues import Queue
from pathlib import Path
from queue import Empty

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.vectors import Vectors
from kvparity.runners.locate.pytorch import WatchedModel
from tests.mutants import around, attention
from tests.mutants.mutant import Mutant
from tests.mutants.trial import Outcome, decisive_cases, try_mutant

__all__ = ["CATALOGUE", "run"]

CATALOGUE: tuple[Mutant, ...] = (*attention.MUTANTS, *around.MUTANTS)


@dataclass(frozen=True)
class Bench:
    """What a worker keeps between mutants."""

    bundle: Bundle
    vectors: list[Vectors]
    watcher: WatchedModel

    def outcome(self, name: str) -> Outcome:
        """Try the mutant of that name; the untouched graph for an empty name."""
        mutant = next((mutant for mutant in CATALOGUE if mutant.name == name), None)
        return try_mutant(self.bundle, mutant, self.vectors, self.watcher)


def _work(root: str, names: Sequence[str], results: Queue[Outcome]) -> None:
    import torch

    torch.set_num_threads(1)
    bundle = Bundle.open(Path(root))
    bench = Bench(bundle, decisive_cases(bundle), WatchedModel(bundle))
    for name in names:
        results.put(bench.outcome(name))


def run(bundle: Bundle, names: Sequence[str], jobs: int) -> list[Outcome]:
    """Try mutants in worker processes; outcomes in the order of the names."""
    context = multiprocessing.get_context("spawn")
    results: Queue[Outcome] = context.Queue()
    shares = [names[start::jobs] for start in range(jobs)]
    workers = [context.Process(target=_work, args=(str(bundle.root), share, results)) for share in shares if share]
    for worker in workers:
        worker.start()
    found: dict[str, Outcome] = {}
    while len(found) < len(names):
        try:
            outcome = results.get(timeout=5)
        except Empty:
            if not any(worker.is_alive() for worker in workers) and results.empty():
                raise RuntimeError(f"a worker died after {len(found)} of {len(names)} mutants") from None
            continue
        found[outcome.name] = outcome
        print(
            f"{len(found)}/{len(names)} {outcome.name}: {outcome.verdict} {outcome.probe}", file=sys.stderr, flush=True
        )
    for worker in workers:
        worker.join()
    return [found[name or "untouched"] for name in names]
