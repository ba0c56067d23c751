"""Locate: the layer, the node, the position and whose fault it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.errors import EngineUnavailableError
from kvparity.runners.base import RunnerSpec, Session, load_engine
from kvparity.runners.compare.judge import judge
from kvparity.runners.compare.options import JudgeOptions
from kvparity.runners.diff.location import Location
from kvparity.runners.locate import entry
from kvparity.runners.locate.graphs import inline_weights, open_graph
from kvparity.runners.report.html import html_report
from kvparity.runners.report.json_file import json_report
from kvparity.runners.report.markdown import markdown_report
from kvparity.runners.report.report import Report
from tests.mutants import around, attention
from tests.mutants.editor import Editor
from tests.mutants.trial import mutated

MUTANTS = {mutant.name: mutant for mutant in (*attention.MUTANTS, *around.MUTANTS)}
CASES = ("prefill-9", "handoff-8", "chunk-9")
Opener = Callable[[Bundle, RunnerSpec], Session]


def ask(bundle: Bundle, *, exact: bool, opener: Opener, cases: tuple[str, ...] = CASES) -> Report:
    options = JudgeOptions((RunnerSpec("ort"),), cases, exact=exact, locate=True)
    return judge(bundle, options, opener=opener)


def ort(bundle: Bundle, spec: RunnerSpec) -> Session:
    return load_engine(spec.name).open_session(bundle, {"threads": "1"} if spec.name == "ort" else {})


def broken(node: str, error: float) -> Opener:
    """ONNX Runtime with one kernel that adds an error to its result, in whatever graph it is given."""

    def opener(bundle: Bundle, spec: RunnerSpec) -> Session:
        if spec.name != "ort":
            return ort(bundle, spec)
        root = bundle.root / f"broken-{node.replace('/', '-')}"
        root.mkdir(exist_ok=True)
        for kind in bundle.manifest.graphs:
            model = open_graph(bundle, kind)
            inline_weights(model)
            editor = Editor(model, bundle.model, kind)
            name = next(str(n.outputs[0].name) for n in model.graph if n.name == node)
            editor.rewrite(name, lambda v, e=editor: e.add("Add", [v, e.constant(error)], v.producer()))  # type: ignore[misc]
            ir.save(model, root / f"{kind}.onnx")
        return ort(Bundle(root, bundle.manifest), spec)

    return opener


def only(report: Report, runner: str) -> Location:
    return next(location for location in report.locations if location.runner == runner)


def test_the_untouched_graph_is_not_accused(subject: Bundle) -> None:
    report = ask(subject, exact=True, opener=ort)
    assert report.verdict == "match"
    assert report.locations == ()


def test_a_window_off_by_one_is_an_export_fault_in_the_sliding_mask(subject: Bundle) -> None:
    with mutated(subject, MUTANTS["window-1-decode"]) as damaged:
        report = ask(damaged, exact=True, opener=ort)
    found = only(report, "exact")
    assert report.verdict == "mismatch"
    assert (found.fault, found.probe, found.layer_kind, found.cause) == ("export", "mask.sliding", "sliding", "window")
    assert (found.graph, found.position) == ("decode", 8)
    assert "queries see 7 rows, the window is 8" in found.sentence
    for text in (markdown_report(report), html_report(report), json_report(report)):
        assert "queries see 7 rows, the window is 8" in text


def test_a_norm_off_by_1e_5_passes_the_gate_fails_exactness_and_is_named(subject: Bundle) -> None:
    with mutated(subject, MUTANTS["norm-1e-5"]) as damaged:
        report = ask(damaged, exact=True, opener=ort, cases=("prefill-9",))
    verdicts = {question.question: question.verdict for question in report.questions}
    found = only(report, "exact")
    assert verdicts == {"gate": "match", "exact": "mismatch"}
    assert (found.fault, found.probe, found.layer) == ("export", "layers.2.input_layernorm", 2)
    assert found.node.startswith("layers.2.input_layernorm/Mul")  # mutants are written with long names
    assert (found.module, found.op_type) == ("layers.2.input_layernorm", "Mul")
    assert "by a factor of 1.00001" in found.why


def test_a_wrong_kernel_is_an_engine_fault_in_that_node(subject: Bundle) -> None:
    node = "layers.3.mlp.down_proj/MatMul"
    with mutated(subject, None) as copy:
        report = ask(copy, exact=False, opener=broken(node, 0.01), cases=("prefill-9",))
    found = only(report, "ort")
    assert (found.fault, found.layer, found.node, found.op_type) == ("engine", 3, node, "MatMul")
    assert found.sentence.startswith("The engine is at fault")


def test_an_export_fault_is_not_blamed_on_the_engine(subject: Bundle) -> None:
    with mutated(subject, MUTANTS["kv-head-wrong"]) as damaged:
        report = ask(damaged, exact=False, opener=ort, cases=("prefill-9",))
    found = only(report, "ort")
    assert (found.fault, found.probe) == ("export", "layers.3.self_attn.context")


def test_an_engine_fault_is_found_beside_a_smaller_export_fault(subject: Bundle) -> None:
    node = "layers.1.self_attn.o_proj/MatMul"
    with mutated(subject, MUTANTS["norm-1e-5"]) as damaged:
        report = ask(damaged, exact=False, opener=broken(node, 0.1), cases=("prefill-9",))
    found = only(report, "ort")
    assert (found.fault, found.node) == ("engine", node)
    assert "fault of its own" in found.note


def test_without_pytorch_outputs_still_say_whose_fault_it_is(subject: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, install: str) -> str:
        raise EngineUnavailableError(f"{name} is not installed; {install}")

    monkeypatch.setattr(entry, "need", missing)
    with mutated(subject, MUTANTS["kv-head-wrong"]) as damaged:
        report = ask(damaged, exact=True, opener=ort, cases=("prefill-9",))
    found = only(report, "exact")
    assert (found.fault, found.probe) == ("export", "")
    assert "present.4.key" in found.note or "logits" in found.note
    with mutated(subject, None) as copy:
        report = ask(copy, exact=False, opener=broken("layers.3.mlp.down_proj/MatMul", 0.01), cases=("prefill-9",))
    assert only(report, "ort").fault == "engine"


def test_what_cannot_be_opened_is_said_and_the_report_stands(subject: Bundle) -> None:
    class Wrong:
        info: Any = None

        def __init__(self, session: Session) -> None:
            self._session, self.info = session, session.info

        def run(self, graph: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
            outputs = self._session.run(graph, inputs)
            return {**outputs, "logits": np.add(outputs["logits"], 1, dtype=np.float32)}

        def close(self) -> None:
            self._session.close()

    report = ask(subject, exact=False, opener=lambda b, s: Wrong(ort(b, s)), cases=("prefill-9",))
    assert report.verdict == "mismatch"
    assert only(report, "ort").fault in ("engine", "none", "unknown")
    static = replace(subject, manifest=replace(subject.manifest, options=replace(subject.options, layout="static")))
    found = report.cases[0].first_divergence
    assert found is not None
    assert entry.Locator(static, static.vectors, ort).answer(found, None).fault == "unknown"
