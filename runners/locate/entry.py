"""``compare --locate``: for every runner that differs, whose fault its first divergence is, and where it begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.errors import EngineUnavailableError, KvparityError
from kvparity.exporter.contract.vectors import Vectors, expected_outputs
from kvparity.runners.base import RunnerSpec, Session, need
from kvparity.runners.diff.location import Location
from kvparity.runners.diff.records import Divergence, ReportRecord
from kvparity.runners.engines import trace_file
from kvparity.runners.locate.engine_fault import engine_fault
from kvparity.runners.locate.export_fault import ExportFault, Watcher, export_fault
from kvparity.runners.locate.foreign import FLOAT32_CONSTANTS, named_copy
from kvparity.runners.locate.graphs import evaluate, load_graph
from kvparity.runners.locate.probe_diff import Call, diff_probe
from kvparity.runners.locate.records import paragraph
from kvparity.runners.locate.search import make_call
from kvparity.runners.locate.trace_fault import trace_fault
from kvparity.runners.reference.origin import Origin

__all__ = ["Locator", "locate"]

Opener = Callable[[Bundle, RunnerSpec], Session]
_EXPLAINS = 0.25  # share of a divergence that an export fault must make to be called its cause


def locate(
    bundle: Bundle,
    report: ReportRecord,
    specs: Mapping[str, RunnerSpec],
    vectors: Callable[[str], Vectors],
    opener: Opener,
    origin: Origin | None = None,
) -> tuple[Location, ...]:
    """Locate the first divergence of every question and runner.

    Args:
        bundle: The bundle.
        report: What was found.
        specs: Runner label to runner.
        vectors: Gives the reference of a case by name.
        opener: Opens a runner on a bundle.
        origin: Which weights PyTorch runs with; None looks for the checkpoint.

    Returns:
        One location per question and runner that differs from PyTorch; empty where none does.
    """
    locator = Locator(bundle, vectors, opener, origin)
    return tuple(locator.answer(divergence, specs.get(divergence.runner)) for divergence in _first(report))


def _first(report: ReportRecord) -> Iterator[Divergence]:
    seen: set[tuple[str, str]] = set()
    for record in report.cases:
        key, divergence = (record.question, record.runner), record.first_divergence
        if divergence is not None and record.question != "self" and key not in seen:
            seen.add(key)
            yield divergence


@dataclass
class Locator:
    """Keeps the reference model and what was found about a call between runners."""

    bundle: Bundle
    vectors: Callable[[str], Vectors]
    opener: Opener
    origin: Origin | None = None
    watcher: Watcher | None = None
    reference: str = ""
    known: dict[tuple[str, int], ExportFault | None] = field(default_factory=dict)

    def answer(self, divergence: Divergence, spec: RunnerSpec | None) -> Location:
        """One location; what keeps it from being found is its note."""
        try:
            return self._locate(divergence, spec)
        except Exception as error:  # an engine may raise anything; the report stands without this answer
            text = str(error) if isinstance(error, KvparityError) else f"{type(error).__name__}: {error}"
            return self._plain("unknown", divergence, text.splitlines()[0].replace(str(self.bundle.root), "BUNDLE"))

    def _locate(self, divergence: Divergence, spec: RunnerSpec | None) -> Location:
        call = make_call(self.bundle, self.vectors(divergence.case), divergence.step)
        try:
            export = self._export(call)
        except EngineUnavailableError as error:
            return self._without_pytorch(call, divergence, spec, str(error))
        if export is not None and (divergence.question == "exact" or _explains(export, divergence)):
            return replace(export.location, runner=divergence.runner)
        engine = None if divergence.question == "exact" else self._engine(call, divergence, spec)
        if engine is not None:
            own = "The graph also has a fault of its own, too small for this difference: --exact --locate shows it."
            note = " ".join(filter(None, [engine.note, own if export is not None else ""]))
            engine = replace(engine, note=note)
            return replace(engine, sentence=paragraph(engine))
        if export is not None:
            return replace(export.location, runner=divergence.runner)
        note = (
            "Every segment fed with right values is within float32 rounding: the difference is made of rounding that "
            "adds up, or of caches from earlier calls; the budget says how it compares with PyTorch's own."
        )
        return self._plain("none", divergence, note)

    def _export(self, call: Call) -> ExportFault | None:
        key = (call.case.name, call.step.index)
        if key not in self.known:
            if self.watcher is None:
                for name in ("torch", "transformers"):
                    need(name, "pip install 'kvparity[export]'")
                from kvparity.runners.locate.pytorch import WatchedModel

                self.watcher = WatchedModel(self.bundle, self.origin)
                self.reference = self.watcher.origin.sentence
            self.known[key] = _said(self._fault(call, self.watcher), self.reference)
        return self.known[key]

    def _fault(self, call: Call, watcher: Watcher) -> ExportFault | None:
        if self.bundle.manifest.foreign is None:
            return export_fault(self.bundle, call, watcher)
        bundle, folder = named_copy(self.bundle, call, watcher.run)
        with folder:
            return export_fault(bundle, call, watcher, relative=FLOAT32_CONSTANTS)

    def _engine(self, call: Call, divergence: Divergence, spec: RunnerSpec | None) -> Location | None:
        if spec is None:
            raise EngineUnavailableError(f"{divergence.runner} cannot be opened again")
        if spec.name == "trace_file":
            return self._trace(call, divergence, spec)
        return engine_fault(self.bundle, call, spec, self.opener, divergence.runner)

    def _trace(self, call: Call, divergence: Divergence, spec: RunnerSpec) -> Location:
        """A replay computes nothing, but it may hold values from inside."""
        session = trace_file.open_session(self.bundle, {"case": divergence.case, **spec.options})
        try:
            case, step = divergence.case, divergence.step
            continued = not (call.step.past or call.step.reached)
            before = session.outputs(case, step - 1, call.step.start) if continued else {}
            return trace_fault(
                self.bundle, call, lambda shapes: session.recorded(case, step, shapes), before, divergence.runner
            )
        finally:
            session.close()

    def _without_pytorch(self, call: Call, divergence: Divergence, spec: RunnerSpec | None, reason: str) -> Location:
        """The recorded float64 outputs still say whether the graph is right; the engine can still be opened."""
        wrong = self._wrong_outputs(call)
        note = f"Without PyTorch only outputs are known, no values inside the graph: {reason}."
        if wrong:
            return self._plain(
                "export", divergence, f"{note} Outputs that are wrong in float64: {', '.join(wrong[:4])}."
            )
        engine = None if divergence.question == "exact" else self._engine(call, divergence, spec)
        return engine or self._plain("none", divergence, note)

    def _wrong_outputs(self, call: Call) -> list[str]:
        options = self.bundle.options
        values = evaluate(load_graph(self.bundle, call.step.graph), call.feeds, f"{call.step.graph}.onnx")
        exact = self.vectors(call.case.name).float64()
        wanted = expected_outputs(exact, call.step, self.bundle.model.slots, options, last=options.logits == "last")
        return [
            name
            for name, want in wanted.items()
            if diff_probe(call, name, name, np.asarray(want), values[name]) is not None
        ]

    def _plain(self, fault: str, divergence: Divergence, note: str) -> Location:
        found = Location(
            fault,  # type: ignore[arg-type]
            divergence.runner,
            divergence.case,
            divergence.step,
            divergence.graph,
            note=note,
        )
        return replace(found, sentence=paragraph(found))


def _said(fault: ExportFault | None, reference: str) -> ExportFault | None:
    """The fault, saying what the graph was compared with."""
    if fault is None or not reference:
        return fault
    location = replace(fault.location, reference=f"{fault.location.reference}: {reference}")
    return replace(fault, location=replace(location, sentence=paragraph(location)))


def _explains(export: ExportFault, divergence: Divergence) -> bool:
    """Whether the graph's own fault is large enough to be the cause of what a runner shows."""
    if not isinstance(divergence.difference, float):
        return divergence.reason != "value"
    return export.at_outputs.get(divergence.tensor, 0.0) >= _EXPLAINS * divergence.difference
