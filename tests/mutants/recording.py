"""A mutant as an engine in float32 that records its inside: what locating makes of a trace alone."""

from __future__ import annotations

from collections.abc import Mapping

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.spec import GraphKind
from kvparity.exporter.contract.vectors import Vectors
from kvparity.runners.base import Array, RunnerInfo, Session
from kvparity.runners.compare.expectations import Wanted, fixed_limits, step_expectations
from kvparity.runners.decode.play import play
from kvparity.runners.diff.gate import compare_outputs
from kvparity.runners.diff.location import Location
from kvparity.runners.engines.exact import Evaluate, open_model
from kvparity.runners.locate.graphs import expose, inline_weights, open_graph, probes_of
from kvparity.runners.locate.search import make_call
from kvparity.runners.locate.trace_fault import trace_fault

__all__ = ["RecordingEngine", "locate_recorded"]


class RecordingEngine:
    """Runs both graphs in ONNX Runtime; ``inside`` holds the probes of the last call by name."""

    def __init__(self, bundle: Bundle) -> None:
        self.info = RunnerInfo("recording", "1")
        self.inside: dict[str, Array] = {}
        self._outputs = {
            kind: [port.name for port in bundle.graph(kind).spec.outputs] for kind in bundle.manifest.graphs
        }
        self._sessions: dict[str, tuple[list[str], Evaluate]] = {}
        self._probes: dict[str, Mapping[str, str]] = {}
        for kind in bundle.manifest.graphs:
            model = open_graph(bundle, kind)
            self._probes[kind] = probes_of(model)
            expose(model, self._probes[kind].values())
            inline_weights(model)
            self._sessions[kind] = open_model(model, "ort", f"{kind}.onnx, recorded")

    def run(self, graph: GraphKind, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one graph once."""
        names, run = self._sessions[graph]
        values = dict(zip(names, run(inputs), strict=True))
        outputs = {name: values[name] for name in self._outputs[graph]}
        self.inside = {probe: values[v] for probe, v in self._probes[graph].items() if probe not in outputs}
        return outputs

    def close(self) -> None:
        """Drop both sessions."""
        self._sessions.clear()


def locate_recorded(
    right: Bundle, engine: RecordingEngine, vectors: Vectors, tol: float, session: Session | None = None
) -> Location | None:
    """Play a case, record all of it, and locate its first divergence from the recording alone.

    Args:
        right: The bundle as it should be.
        engine: Plays damaged graphs, or is played by a faulty host.
        vectors: The case.
        tol: Gate of the outputs.
        session: That host.

    Returns:
        The location; None where every output of every call is within the gate.
    """
    limits = fixed_limits(tol)
    before: Mapping[str, Array] = {}
    for result in play(right, session or engine, vectors.case):
        expected = step_expectations(right, vectors, result.step, limits, Wanted("float32", None))
        if not all(diff.matches for diff in compare_outputs(result.outputs, expected)):
            before = {} if result.step.past or result.step.reached else before
            return _located(right, vectors, result.step.index, {**result.outputs, **engine.inside}, before)
        before = result.outputs
    return None


def _located(
    right: Bundle, vectors: Vectors, step: int, inside: Mapping[str, Array], before: Mapping[str, Array]
) -> Location:
    return trace_fault(right, make_call(right, vectors, step), lambda _: inside, before, "recorded")
