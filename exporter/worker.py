"""Traces one graph in a process of its own: ``python -m exporter.worker JOB.json``.

A process per graph lets both be traced at once and returns all of torch's memory; a fixed hash seed makes the same
input give the same bytes (models iterate over sets of layer types).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exporter.errors import ExportError
from exporter.spec import ExportOptions, GraphKind
from exporter.weights import Placement

__all__ = ["Job", "start", "wait"]


@dataclass(frozen=True)
class Job:
    """One graph to trace: which checkpoint, how, where its weights lie, where to write."""

    source: str
    folder: str
    gguf: str | None
    kind: GraphKind
    options: ExportOptions
    placements: Mapping[str, Placement]
    output: str
    version: str


def start(job: Job, scratch: Path) -> subprocess.Popen[str]:
    """Start a worker; ``scratch`` holds its job file."""
    path = scratch / f"{job.kind}.job.json"
    path.write_text(json.dumps(asdict(job)), encoding="utf-8")
    root = str(Path(__file__).resolve().parents[1])
    search = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": search}
    return subprocess.Popen(
        [sys.executable, "-m", "exporter.worker", str(path)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait(process: subprocess.Popen[str], kind: str) -> None:
    """Wait for a worker.

    Raises:
        ExportError: It failed; its last line says why.
    """
    _, errors = process.communicate()
    if process.returncode:
        lines = [line for line in errors.strip().splitlines() if line.strip()]
        reason = lines[-1] if lines else f"exit code {process.returncode}"
        raise ExportError(reason.removeprefix("error: ") if reason.startswith("error: ") else f"{kind}: {reason}")


def trace(job: Job) -> None:
    """Trace, clean up and write one graph."""
    from exporter.capture import capture
    from exporter.checkpoint import Checkpoint
    from exporter.describe import model_spec
    from exporter.passes.pipeline import finish
    from exporter.ports import graph_spec

    checkpoint = Checkpoint(job.source, None, Path(job.folder), job.gguf)
    config = checkpoint.config()
    shell = checkpoint.shell(config)
    spec = model_spec(config, shell, job.options.dtype)
    captured = capture(shell, spec, graph_spec(job.kind, spec, job.options), job.options)
    finish(captured, job.placements, Path(job.output), job.version)


def _read(path: str) -> Job:
    data: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    data["options"] = ExportOptions(**data["options"])
    data["placements"] = {
        name: Placement(**{**entry, "shape": tuple(entry["shape"])}) for name, entry in data["placements"].items()
    }
    return Job(**data)


if __name__ == "__main__":
    try:
        trace(_read(sys.argv[1]))
    except ExportError as error:
        sys.exit(f"error: {error}")
