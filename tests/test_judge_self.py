"""Identities: a right engine satisfies all of them, and each kind of fault breaks the ones that are there for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.spec import ExportOptions
from kvparity.runners.base import RunnerSpec
from kvparity.runners.compare.identities import identities
from kvparity.runners.compare.judge import JudgeOptions, judge
from kvparity.runners.report.report import Report
from tests.synthetic import MODEL, WINDOW, Decoder, make_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("self") / "bundle", recorded=False)


def run(bundle: Bundle, session: Any, **options: Any) -> Report:
    given = JudgeOptions((RunnerSpec("ort"),), identities=True, **options)
    return judge(bundle, given, opener=lambda _bundle, _spec: session)


def broken(report: Report) -> set[str]:
    return {record.case for record in report.cases if record.verdict == "mismatch"}


def test_a_right_engine_satisfies_every_identity_without_any_reference(bundle: Bundle) -> None:
    report = run(bundle, Decoder())
    assert report.verdict == "match"
    assert [q.question for q in report.questions] == ["self"]
    names = [record.case for record in report.cases]
    assert len(set(names)) == len(names)
    assert {f"handoff-{WINDOW + shift}" for shift in range(-3, 4)} <= set(names)
    assert all(record.compared for record in report.cases)


def test_a_decode_window_off_by_one_breaks_every_cut_that_decodes_past_the_window(bundle: Bundle) -> None:
    class Narrow(Decoder):
        def run(self, graph: str, inputs: Any) -> dict[str, Any]:
            self.window_shift = -1 if graph == "decode" else 0
            return super().run(graph, inputs)

    found = broken(run(bundle, Narrow()))
    assert {"stepwise", "decode-graph", "chunks-7", f"handoff-{WINDOW}", f"split-{WINDOW}", "padded-decode-0"} <= found
    assert not {"padded-0", "rerun-decode"} & found


def test_padding_that_is_not_masked_breaks_the_padded_rows_only(bundle: Bundle) -> None:
    class Unmasked(Decoder):
        def run(self, graph: str, inputs: Any) -> dict[str, Any]:
            return super().run(graph, {**inputs, "attention_mask": np.ones_like(inputs["attention_mask"])})

    found = broken(run(bundle, Unmasked()))
    padded = {f"{name}-{pad}" for name in ("padded", "padded-decode") for pad in (3, 4, WINDOW + 10)}
    assert found == padded | {"reorder-row-2", "batch-leave", "batch-join-row-2"}


def test_one_bit_of_difference_between_two_runs_is_found(bundle: Bundle) -> None:
    class Drifting(Decoder):
        def run(self, graph: str, inputs: Any) -> dict[str, Any]:
            outputs = super().run(graph, inputs)
            outputs["logits"] = outputs["logits"] * np.float32(1 + self.calls * 1e-7)
            return outputs

    assert broken(run(bundle, Drifting())) == {"rerun-prefill", "rerun-decode"}


def test_a_shape_fault_is_a_mismatch_and_a_crash_an_error(bundle: Bundle) -> None:
    def narrow(_graph: str, outputs: dict[str, Any]) -> dict[str, Any]:
        outputs["logits"] = outputs["logits"][:, :, 1:]
        return outputs

    def fewer_heads(_graph: str, outputs: dict[str, Any]) -> dict[str, Any]:
        return {**outputs, "present.1.key": outputs["present.1.key"][:, :, :, :1]}

    assert run(bundle, Decoder(edit=narrow)).verdict == "mismatch"
    assert "decode-graph" in broken(run(bundle, Decoder(edit=fewer_heads), cases=("decode-graph",)))
    crashed = run(bundle, Decoder(crash_on_call=1), cases=("stepwise", "chunks-7"))
    assert [record.verdict for record in crashed.cases] == ["error", "match"]


def test_identities_are_named_by_glob_and_bases_are_played_once(bundle: Bundle) -> None:
    session = Decoder()
    report = run(bundle, session, cases=("split-*",))
    assert [record.steps for record in report.cases] == [2] * 7
    assert session.calls == 1 + 7 * 2


def test_auto_allows_twice_the_budget_because_both_runs_may_be_off(tmp_path: Path, bundle: Bundle) -> None:
    recorded = make_bundle(tmp_path / "bundle")
    report = run(recorded, Decoder(), tol="auto")
    assert report.verdict == "match"
    assert report.cases[0].limits["logits"] == 8 * recorded.manifest.noise["logits"]


def test_identities_longer_than_the_model_are_left_out() -> None:
    from dataclasses import replace

    short = replace(MODEL, max_position=WINDOW + 10)
    assert all(item.variant.total <= WINDOW + 10 for item in identities(short, ExportOptions()))
    assert len(identities(short, ExportOptions())) < len(identities(MODEL, ExportOptions()))
