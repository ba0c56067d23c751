"""An engine whose inside can be recorded: a bundle's graphs, or mutants of them, in float32 with every probe kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime

from benchmarks.mutants.mutant import Mutant
from benchmarks.mutants.trial import mutated
from exporter.bundle import Bundle
from runners.base import Array, RunnerInfo
from runners.engines.trace_file import TraceWriter
from runners.locate.graphs import expose, open_graph, probes_of
from runners.sequence import play


class RecordingEngine:
    """Runs both graphs; ``inside`` holds the probes of the last call by name."""

    def __init__(self, bundle: Bundle) -> None:
        self.info = RunnerInfo("recording", "1")
        self.inside: dict[str, Array] = {}
        self._outputs = {
            kind: [port.name for port in bundle.graph(kind).spec.outputs] for kind in bundle.manifest.graphs
        }
        self._sessions: dict[str, Any] = {}
        self._probes: dict[str, Mapping[str, str]] = {}
        for kind in bundle.manifest.graphs:
            model = open_graph(bundle, kind)
            self._probes[kind] = probes_of(model)
            expose(model, self._probes[kind].values())
            for name, value in model.graph.initializers.items():
                value.const_value = ir.tensor(value.const_value.numpy(), name=name)
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            self._sessions[kind] = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)

    def run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        session = self._sessions[graph]
        names = [output.name for output in session.get_outputs()]
        values = dict(zip(names, session.run(names, dict(inputs)), strict=True))
        outputs = {name: values[name] for name in self._outputs[graph]}
        self.inside = {probe: values[v] for probe, v in self._probes[graph].items() if probe not in outputs}
        return outputs

    def close(self) -> None:
        self._sessions.clear()


def record(
    bundle: Bundle,
    path: Path,
    cases: Collection[str],
    *,
    mutant: Mutant | None = None,
    probes: str = "*",
    outputs: str = "*",
) -> Path:
    """Play cases on a mutant of the bundle and write what it returned, with the values inside that a pattern names."""
    with mutated(bundle, mutant) as damaged, TraceWriter(path, "recording engine") as writer:
        engine = RecordingEngine(damaged)
        for case in cases:
            try:
                for result in play(bundle, engine, bundle.vectors(case).case):  # type: ignore[arg-type]
                    kept = {k: v for k, v in result.outputs.items() if fnmatchcase(k, outputs)}
                    inside = {k: v for k, v in engine.inside.items() if fnmatchcase(k, probes)}
                    writer.add(case, result.step, kept, inside)
            except Exception:  # a wrong cache makes the next call fail; what was recorded before it stays
                if mutant is None:
                    raise
    return path
