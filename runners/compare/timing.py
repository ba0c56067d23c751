"""How long one-token decode calls take while cases are judged: a hint beside the verdict, not a benchmark."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

from kvparity.exporter.contract.spec import DECODE, GraphKind
from kvparity.runners.base import Array, Session

__all__ = ["Timed"]


class Timed:
    """A session that keeps what each decode call of one row and one token took, pipes apart."""

    def __init__(self, inner: Session) -> None:
        self._inner, self.info = inner, inner.info
        self.seconds: list[float] = []

    def run(self, graph: GraphKind, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one graph once."""
        started = time.perf_counter()
        outputs = self._inner.run(graph, inputs)
        took = getattr(self._inner, "seconds", 0.0) or time.perf_counter() - started
        if graph == DECODE and inputs["input_ids"].shape == (1, 1):
            self.seconds.append(took)
        return outputs

    def take(self) -> float | None:
        """Median milliseconds of the calls since the last time; None where there was none."""
        seconds, self.seconds = self.seconds, []
        return round(statistics.median(seconds) * 1e3, 3) if seconds else None

    def close(self) -> None:
        """End the session."""
        self._inner.close()
