"""Traces both graphs of a model, side by side, in a process that :mod:`exporter.trace.process` starts and asks.

It reads two lines of JSON: the job, and later where the weights lie. Everything heavy is imported once, before the
first line is there; then the process forks, so that each graph has a core and a copy of the model without weights.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from kvparity.exporter.checkpoint.model_spec import model_spec
from kvparity.exporter.checkpoint.source import Checkpoint
from kvparity.exporter.contract.errors import ExportError
from kvparity.exporter.contract.placement import Placement
from kvparity.exporter.contract.ports import graph_spec, resolve_options
from kvparity.exporter.contract.spec import DECODE, PREFILL, ExportOptions, GraphKind, ModelSpec
from kvparity.exporter.passes.captured import Captured
from kvparity.exporter.passes.pipeline import finish
from kvparity.exporter.trace.capture import capture
from kvparity.exporter.trace.process import TRACED, Job

__all__ = ["main", "trace"]

Placements = Callable[[], Mapping[str, Placement]]


@dataclass(frozen=True)
class _Model:
    """A model without weights; good for one graph."""

    job: Job
    meta_model: Any
    spec: ModelSpec
    options: ExportOptions

    def trace(self, kind: GraphKind, placements: Placements) -> str:
        """Trace, clean up and write one graph, and return what traced it.

        ``placements`` is called once the graph is there.
        """
        wide = None
        if self.options.dtype != "float32":  # float32 bundles are traced in float64 as it is
            wide = _read_model(replace(self.job, options=replace(self.job.options, dtype="float32"))).capture(kind)
        captured = self.capture(kind)
        finish(captured, placements(), Path(self.job.output) / f"{kind}.onnx", self.job.version, wide)
        return captured.tracer

    def capture(self, kind: GraphKind) -> Captured:
        """Trace one graph."""
        return capture(self.meta_model, self.spec, graph_spec(kind, self.spec, self.options), self.options)


def trace(job: Job, placements: Mapping[str, Placement]) -> dict[str, str]:
    """Trace both graphs here, one after the other; returns what traced each.

    Raises:
        ExportError: The model cannot be traced.
    """
    return {kind: _read_model(job).trace(kind, lambda: placements) for kind in (PREFILL, DECODE)}


def _read_model(job: Job) -> _Model:
    checkpoint = Checkpoint(job.source, None, Path(job.config))
    config = checkpoint.config()
    meta_model = checkpoint.meta_model(config, job.options.dtype)
    spec = model_spec(config, meta_model, job.options.dtype)
    return _Model(job, meta_model, spec, resolve_options(job.options, spec))


def _serve(lines: IO[str]) -> None:
    """Answer one job; an end of the input before its second line means that nobody wants the graphs."""
    _preload()
    first = lines.readline()
    if not first:
        return
    data = json.loads(first)
    job = Job(**{**data, "options": ExportOptions(**{**data["options"], "keep": tuple(data["options"]["keep"])})})
    if not hasattr(os, "fork"):
        for kind, tracer in trace(job, _placements(lines.readline())).items():
            _say(kind, tracer)
        return
    model = _read_model(job)
    gc.collect()
    gc.freeze()  # what was imported never becomes garbage
    gc.set_threshold(50_000, 20, 100)  # a trace makes many objects and little garbage: a tenth of its time
    gc.enable()
    other = _Child(model, PREFILL)
    error: ExportError | None = None
    try:
        _say(DECODE, model.trace(DECODE, lambda: _placements(other.tell(lines.readline()))))
    except ExportError as found:
        error = found
    first_error = other.wait() or (None if error is None else str(error))
    if first_error:
        sys.exit(f"error: {first_error}")


class _Child:
    """A fork of this process that traces one graph."""

    def __init__(self, model: _Model, kind: GraphKind) -> None:
        self._kind = kind
        told, self._tell = os.pipe()
        self._answer, answer = os.pipe()
        self._pid = os.fork()
        if self._pid:
            os.close(told)
            os.close(answer)
            return
        os.close(self._tell)
        code = 1
        try:
            with os.fdopen(told) as lines:
                _say(kind, model.trace(kind, lambda: _placements(lines.readline())))
            code = 0
        except ExportError as error:
            os.write(answer, str(error).encode())
        except BaseException as error:  # as the last line that the interpreter would have printed
            os.write(answer, f"{kind}: {type(error).__name__}: {error}".splitlines()[0].encode())
        finally:
            os._exit(code)

    def tell(self, line: str) -> str:
        """Hand a line on to the child."""
        with os.fdopen(self._tell, "w") as stream:
            stream.write(line)
        return line

    def wait(self) -> str:
        """The child's error, empty where there was none."""
        with os.fdopen(self._answer, "rb") as stream:
            message = stream.read().decode()
        _, status = os.waitpid(self._pid, 0)
        return message or (f"{self._kind}: the tracing process died (status {status})" if status else "")


def _say(kind: str, tracer: str) -> None:
    """Tell the process that asked what traced a graph; in one write, since two processes share the pipe."""
    os.write(1, f"{TRACED}{kind}\t{tracer}\n".encode())


def _preload() -> None:
    """What a trace imports while it runs."""
    import accelerate  # noqa: F401
    import onnxscript.function_libs.torch_lib.ops  # noqa: F401
    import torch._dynamo.config
    import torch.onnx._internal.exporter._core  # noqa: F401
    import transformers.models.auto.modeling_auto  # noqa: F401


def _placements(line: str) -> dict[str, Placement]:
    if not line:
        raise ExportError("nobody waits for the graphs any more")
    entries = json.loads(line).items()
    return {name: Placement(**{**entry, "shape": tuple(entry["shape"])}) for name, entry in entries}


def main() -> None:
    """Serve standard input."""
    gc.disable()  # until the model is read: what is imported stays
    try:
        _serve(sys.stdin)
    except ExportError as error:
        sys.exit(f"error: {error}")
    os._exit(0)  # the graphs are written; taking down torch's modules one by one has no purpose
