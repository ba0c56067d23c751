"""Starts and asks the process that traces (``trace/worker.py``); standard library only, so it can start at once.

The process imports torch and transformers while this one does, and traces while this one places the weights. A fixed
hash seed makes the same input give the same bytes (models iterate over sets of layer types).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from kvparity.exporter.contract.errors import ExportError
from kvparity.exporter.contract.spec import ExportOptions
from kvparity.start import command

if TYPE_CHECKING:
    from kvparity.exporter.contract.placement import Placement

__all__ = ["TRACED", "Job", "Tracer"]

TRACED = "kvparity.traced\t"  # begins a line that says what traced a graph; libraries print other lines

# The process forks, and a pool of threads that was started before a fork is not there after it: the first parallel
# operation of the child would wait for ever. Tracing computes next to nothing, so one thread is all it needs.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Job:
    """Both graphs of a model.

    Attributes:
        source: The checkpoint's name, for messages.
        config: Folder that holds its ``config.json``.
        options: How to export.
        output: Folder that the graphs are written to.
        version: Of kvparity, for the graphs' producer field.
    """

    source: str
    config: str
    options: ExportOptions
    output: str
    version: str


class Tracer:
    """A process that traces both graphs of one model: :meth:`begin`, then :meth:`finish`; a context manager."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            command("kvparity.exporter.trace.worker"),
            env={**os.environ, **_ONE_THREAD, "PYTHONHASHSEED": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Tracer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def begin(self, job: Job) -> None:
        """Start tracing; weights need not be placed yet."""
        self._send(asdict(job))

    def finish(self, placements: Mapping[str, Placement]) -> dict[str, str]:
        """Say where the weights lie, wait until both graphs are written, and return what traced each.

        Raises:
            ExportError: A graph cannot be traced; the worker's last line says why.
        """
        self._send({name: asdict(place) for name, place in placements.items()})
        answer, errors = self._process.communicate()
        if self._process.returncode:
            lines = [line for line in errors.strip().splitlines() if line.strip()]
            reason = lines[-1] if lines else f"the tracing process ended with exit code {self._process.returncode}"
            raise ExportError(reason.removeprefix("error: "))
        said = [line.removeprefix(TRACED).split("\t") for line in answer.splitlines() if line.startswith(TRACED)]
        return {kind: tracer for kind, tracer in said}

    def close(self) -> None:
        """End the process, whatever it is doing; its own child sees that and ends too."""
        if self._process.poll() is None:
            self._process.kill()
        with contextlib.suppress(ValueError, OSError):  # already closed, or the worker is gone
            self._process.communicate()

    def _send(self, message: object) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # a worker that died is reported by `finish`
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
