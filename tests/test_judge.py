"""The judge: every question, on a numpy decoder; each run that must match has a mutated twin that must not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.errors import BundleError, EngineUnavailableError, NotTakenError, TraceError
from kvparity.exporter.contract.spec import ExportOptions
from kvparity.runners.base import RunnerSpec
from kvparity.runners.compare.judge import JudgeOptions, judge
from kvparity.runners.reference import source as references
from kvparity.runners.report.report import Report
from tests.synthetic import MODEL, WINDOW, Decoder, make_bundle

Make = Callable[[], Any]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("judge") / "bundle")


def run(bundle: Bundle, make: Make = Decoder, **options: Any) -> Report:
    options.setdefault("runners", (RunnerSpec("ort"),))
    return judge(bundle, JudgeOptions(**options), opener=lambda _bundle, _spec: make())


def with_outputs(change: Callable[[dict[str, Any]], None], graph: str = "decode") -> Make:
    def edit(kind: str, outputs: dict[str, Any]) -> dict[str, Any]:
        if kind == graph:
            change(outputs)
        return outputs

    return lambda: Decoder(edit=edit)


def add(name: str, amount: float, index: tuple[int, ...]) -> Callable[[dict[str, Any]], None]:
    def change(outputs: dict[str, Any]) -> None:
        outputs[name] = outputs[name].copy()
        outputs[name][index] += amount

    return change


def test_a_right_engine_matches_every_case(bundle: Bundle) -> None:
    report = run(bundle)
    assert report.verdict == "match"
    assert report.first_divergence is None
    assert {record.case for record in report.cases} == {entry.name for entry in bundle.manifest.cases}
    assert all(record.verdict == "match" and record.played == record.steps for record in report.cases)
    names = ["logits", *(f"present.{slot}.{part}" for slot in (0, 1) for part in ("key", "value"))]
    across = [result for result in report.results if result.case == "decode-across"]
    assert [(r.step, r.tensor) for r in across] == [(step, name) for step in range(10) for name in names]


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_window_off_by_one_is_found_at_the_first_slot_that_can_differ(bundle: Bundle, shift: int) -> None:
    report = run(bundle, lambda: Decoder(window_shift=shift))
    first = report.first_divergence
    assert report.verdict == "mismatch"
    assert first is not None
    assert first.step == 0
    assert first.position == (WINDOW if shift == 1 else WINDOW - 1)


MUTANTS = {
    "a value": (add("logits", 1e-3, (0, 0, 4)), "value"),
    "a NaN": (add("logits", np.nan, (0, 0, 4)), "nonfinite"),
    "an Inf in a cache": (add("present.1.value", np.inf, (0, 0, 0, 0)), "nonfinite"),
    "a cache row": (add("present.0.key", 1e-3, (0, 0, 0, 0)), "value"),
    "an extra output": (lambda out: out.update({"present.2.key": out["logits"]}), "extra"),
    "a missing output": (lambda out: out.pop("logits"), "missing"),
    "a dtype": (lambda out: out.update(logits=out["logits"].astype(np.float64)), "dtype"),
    "a shape": (lambda out: out.update(logits=out["logits"][:, :, :-1]), "shape"),
    "rows one short": (lambda out: out.update({"present.1.key": out["present.1.key"][:, :, 1:]}), "shape"),
    "nothing at all": (lambda out: out.clear(), "missing"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_fault_in_one_call_is_a_mismatch_that_names_the_call(bundle: Bundle, name: str) -> None:
    change, reason = MUTANTS[name]
    report = run(bundle, with_outputs(change), cases=(f"handoff-{WINDOW}",))
    first = report.first_divergence
    assert report.verdict == "mismatch"
    assert first is not None
    assert (first.step, first.graph, first.reason) == (1, "decode", reason)
    assert f"case handoff-{WINDOW}, step 1 (decode, 1 token)" in first.sentence
    assert run(bundle, cases=(f"handoff-{WINDOW}",)).verdict == "match"


def test_a_wrong_cache_explains_wrong_logits_at_the_same_slot(bundle: Bundle) -> None:
    def change(outputs: dict[str, Any]) -> None:
        add("logits", 1.0, (0, 0, 0))(outputs)
        add("present.1.key", 1.0, (0, 0, -1, 0))(outputs)
        add("present.1.value", 1.0, (0, 0, -1, 0))(outputs)

    first = run(bundle, with_outputs(change), cases=("handoff-*",)).first_divergence
    assert first is not None
    assert (first.tensor, first.layer, first.layer_kind, first.also) == ("present.1.key", 1, "full", None)


def test_logits_that_go_first_name_the_earliest_wrong_layer_too(bundle: Bundle) -> None:
    def change(outputs: dict[str, Any]) -> None:
        add("logits", 1.0, (0, 2, 3))(outputs)
        add("present.1.value", 1.0, (0, 0, 4, 0))(outputs)

    first = run(bundle, with_outputs(change, "prefill"), cases=("prefill-7",)).first_divergence
    assert first is not None
    assert (first.tensor, first.position, first.also) == ("logits", 2, 1)
    assert "logits of token 3" in first.sentence
    assert "earliest wrong cache in the same call: layer 1" in first.sentence


def test_the_smallest_passing_tolerance_passes_and_the_next_smaller_does_not(bundle: Bundle) -> None:
    make = with_outputs(add("logits", 1e-3, (0, 0, 4)))
    needed = run(bundle, make, tol=1e-4).questions[0].needs_tol
    assert isinstance(needed, float)
    assert run(bundle, make, tol=needed).verdict == "match"
    assert run(bundle, make, tol=float(np.nextafter(needed, 0))).verdict == "mismatch"
    poisoned = with_outputs(add("logits", np.nan, (0, 0, 4)))
    assert run(bundle, poisoned).questions[0].needs_tol is None


def test_a_crash_is_that_cases_error_and_the_others_go_on(bundle: Bundle) -> None:
    report = run(bundle, lambda: Decoder(crash_on_call=9), cases=("handoff-*",))
    verdicts = {record.case: record.verdict for record in report.cases}
    assert verdicts == {"handoff-5": "match", "handoff-6": "match", "handoff-7": "error"}
    assert report.cases[-1].message == "RuntimeError: segmentation fault"
    assert report.verdict == "error"


def test_a_mismatch_seen_before_a_crash_stays_a_mismatch(bundle: Bundle) -> None:
    def edit(kind: str, outputs: dict[str, Any]) -> dict[str, Any]:
        outputs["logits"] = outputs["logits"] + 1
        return outputs

    report = run(bundle, lambda: Decoder(edit=edit, crash_on_call=2), cases=("handoff-5",))
    assert report.verdict == "mismatch"
    assert (report.cases[0].played, report.cases[0].steps) == (1, 4)
    assert "segmentation" in report.cases[0].message


def test_a_runner_that_cannot_be_opened_is_shown_and_never_passes(bundle: Bundle) -> None:
    def opener(_bundle: Bundle, spec: RunnerSpec) -> Any:
        if spec.name == "openvino":
            raise EngineUnavailableError("openvino is not installed; pip install openvino")
        return Decoder()

    options = JudgeOptions((RunnerSpec("openvino"), RunnerSpec("ort")), cases=("prefill-1",))
    report = judge(bundle, options, opener=opener)
    assert report.verdict == "error"
    assert [(r.name, r.available) for r in report.runners] == [("openvino", False), ("ort", True)]
    assert [record.verdict for record in report.cases] == ["match"]


def test_an_engine_of_all_that_takes_other_bundles_is_shown_and_one_that_was_named_is_an_error(bundle: Bundle) -> None:
    def opener(_bundle: Bundle, spec: RunnerSpec) -> Any:
        if spec.name == "emx":
            raise NotTakenError("emx takes the static layout only")
        if spec.name == "mnn":
            raise EngineUnavailableError("mnn cannot load decode.onnx")
        return Decoder()

    def verdict(*specs: RunnerSpec) -> str:
        report = judge(bundle, JudgeOptions(specs), opener=opener)
        shown = {runner.name: runner.message for runner in report.runners if not runner.available}
        assert shown.keys() == {spec.name for spec in specs if spec.name != "ort"}
        return report.verdict

    ort = RunnerSpec("ort", named=False)
    assert verdict(ort, RunnerSpec("emx", named=False)) == "match"
    assert verdict(ort, RunnerSpec("emx")) == "error"
    assert verdict(ort, RunnerSpec("mnn", named=False)) == "error"  # it takes this layout, and fails
    assert verdict(RunnerSpec("emx", named=False)) == "error"  # nothing was compared


def test_sessions_are_closed_also_after_a_crash(bundle: Bundle) -> None:
    sessions = [Decoder(crash_on_call=1), Decoder()]
    for session in sessions:
        run(bundle, partial(lambda session: session, session), cases=("prefill-1",))
    assert all(session.closed for session in sessions)


def test_two_runners_are_judged_on_the_same_cases(bundle: Bundle) -> None:
    def opener(_bundle: Bundle, spec: RunnerSpec) -> Any:
        return Decoder(window_shift=1 if spec.options else 0)

    specs = (RunnerSpec("ort"), RunnerSpec("ort", {"level": "none"}))
    report = judge(bundle, JudgeOptions(specs, cases=("prefill-15",)), opener=opener)
    assert [(r.runner, r.verdict) for r in report.cases] == [("ort", "match"), ("ort:level=none", "mismatch")]
    assert report.first_divergence is not None
    assert report.first_divergence.runner == "ort:level=none"
    assert report.command.endswith("--runner ort:level=none --case prefill-15")


def test_a_pattern_selects_cases_and_one_that_selects_nothing_is_refused(bundle: Bundle) -> None:
    assert {r.case for r in run(bundle, cases=("handoff-*", "prefill-1")).cases} == {
        "prefill-1",
        *(f"handoff-{length}" for length in (5, 6, 7)),
    }
    with pytest.raises(BundleError, match="no case matches 'prefil-1'"):
        run(bundle, cases=("prefill-1", "prefil-1"))
    with pytest.raises(BundleError, match="no identity matches"):
        run(bundle, cases=("prefill-1",), identities=True)


def test_cases_without_vectors_are_not_judged_and_nothing_judged_is_an_error(tmp_path: Path) -> None:
    bare = make_bundle(tmp_path / "bundle", recorded=False)
    report = run(bare)
    assert report.verdict == "error"
    assert report.cases == ()
    assert len(report.not_judged) == len(bare.manifest.cases)


def test_live_judges_what_was_not_recorded_and_finds_the_same_faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = make_bundle(tmp_path / "bundle", recorded=False)
    full = ExportOptions(sliding_cache="full")
    monkeypatch.setattr(references, "open_pytorch", lambda _bundle, dtype, _origin: Decoder(dtype, options=full))
    report = run(bare, live=True, tol="auto", cases=("batch-*", "decode-across"))
    assert report.verdict == "match"
    assert report.not_judged == ()
    assert all(record.budget for record in report.cases)
    assert run(bare, lambda: Decoder(window_shift=1), live=True).verdict == "mismatch"


def test_only_last_positions_are_compared_where_the_graph_returns_no_others(tmp_path: Path) -> None:
    options = ExportOptions(logits="last")
    bundle = make_bundle(tmp_path / "bundle", options=options)
    report = run(bundle, lambda: Decoder(options=options))
    assert report.verdict == "match"
    seven = [r for r in report.results if r.case == "prefill-7" and r.tensor == "logits"]
    assert [r.worst_position for r in seven] == [6]
    assert run(bundle, Decoder).verdict == "mismatch"
    assert run(bundle, lambda: Decoder(options=options), identities=True).verdict == "match"


def test_full_length_sliding_caches_are_compared_row_by_row(tmp_path: Path) -> None:
    options = ExportOptions(sliding_cache="full")
    bundle = make_bundle(tmp_path / "bundle", options=options)
    assert run(bundle, lambda: Decoder(options=options)).verdict == "match"
    cropped = run(bundle, Decoder).first_divergence
    assert cropped is not None
    assert (cropped.tensor, cropped.reason) == ("present.0.key", "shape")


def poison_padding(values: float) -> Make:
    def edit(_kind: str, outputs: dict[str, Any]) -> dict[str, Any]:
        logits = outputs["logits"]
        if logits.shape[0] == 4 and logits.shape[1] > 1:
            outputs["logits"] = logits.copy()
            outputs["logits"][1, :3] = values
        return outputs

    return lambda: Decoder(edit=edit)


def test_padded_queries_may_hold_anything_finite_and_are_counted(bundle: Bundle) -> None:
    report = run(bundle, poison_padding(1e6), cases=("batch-ragged",))
    assert report.verdict == "match"
    pads = sum(report.cases[0].pads)
    calls_with_logits_padding, full_cache_tensors = 1, 2 * 4
    assert report.cases[0].padded_slots >= pads * (calls_with_logits_padding + full_cache_tensors)
    assert any("padded slots" in note for note in report.questions[0].notes)
    assert run(bundle, poison_padding(np.nan), cases=("batch-ragged",)).verdict == "mismatch"


def test_auto_judges_against_float64_in_units_of_the_references_own_noise(bundle: Bundle) -> None:
    single = run(bundle, tol="auto")
    assert single.verdict == "match"
    needed = single.questions[0].needs_budget
    assert isinstance(needed, float)
    assert 0 < needed <= 4
    careful = run(bundle, lambda: Decoder("float64", edit=lambda _k, out: rounded(out)), tol="auto")
    assert careful.verdict == "match"
    assert isinstance(careful.questions[0].needs_budget, float)
    assert careful.questions[0].needs_budget < needed
    coarse = run(bundle, lambda: Decoder(scale=1 + 3e-5), tol="auto")
    assert coarse.verdict == "mismatch"
    assert run(bundle, lambda: Decoder(scale=1 + 3e-6), tol=1e-3).verdict == "match"
    assert run(bundle, lambda: Decoder(scale=1 + 3e-5), tol="auto", budget=1e4).verdict == "match"


def rounded(outputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value.astype(np.float32) for name, value in outputs.items()}


def test_auto_without_float64_vectors_cannot_tell(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", float64=False)
    assert run(bundle).verdict == "match"
    report = run(bundle, tol="auto")
    assert report.verdict == "error"
    assert "--tol auto needs float64" in report.cases[0].message


def test_a_tolerance_below_the_references_noise_is_called_that(bundle: Bundle) -> None:
    assert not any("below PyTorch's own" in note for note in run(bundle).questions[0].notes)
    tight = run(bundle, with_outputs(add("logits", 1e-6, (0, 0, 0))), tol=1e-9)
    assert tight.verdict == "mismatch"
    assert any("below PyTorch's own" in note for note in tight.questions[0].notes)


def test_exactness_is_a_question_of_its_own(bundle: Bundle) -> None:
    def opener(scale: float) -> Any:
        return lambda _bundle, spec: Decoder("float64", scale=scale) if spec.name == "exact" else Decoder(scale=scale)

    options = JudgeOptions((RunnerSpec("ort"),), exact=True, exact_tol=1e-9, tol=1e-4)
    right = judge(bundle, options, opener=opener(1.0))
    assert [(q.question, q.verdict) for q in right.questions] == [("gate", "match"), ("exact", "match")]
    wrong = judge(bundle, options, opener=opener(1 + 1e-6))
    assert [(q.question, q.verdict) for q in wrong.questions] == [("gate", "match"), ("exact", "mismatch")]
    assert wrong.verdict == "mismatch"
    assert wrong.first_divergence is not None
    assert wrong.first_divergence.question == "exact"
    assert "PyTorch in float64" in wrong.first_divergence.sentence
    assert "--exact" in wrong.command
    assert any("export fault" in note for note in wrong.questions[1].notes)


def test_a_wrong_engine_on_a_right_graph_is_called_an_engine_fault(bundle: Bundle) -> None:
    def opener(_bundle: Bundle, spec: RunnerSpec) -> Any:
        return Decoder("float64") if spec.name == "exact" else Decoder(scale=1.001)

    report = judge(bundle, JudgeOptions((RunnerSpec("ort"),), exact=True, exact_tol=1e-9), opener=opener)
    assert [q.verdict for q in report.questions] == ["mismatch", "match"]
    assert any("engine fault" in note for note in report.questions[1].notes)


def test_a_flip_of_the_likeliest_token_is_reported_and_a_near_tie_called_that(bundle: Bundle) -> None:
    def flip(outputs: dict[str, Any]) -> None:
        logits = outputs["logits"] = outputs["logits"].copy()
        second = np.argsort(logits[0, 0])[-2]
        logits[0, 0, second] = logits[0, 0].max() + 0.01

    report = run(bundle, with_outputs(flip, "prefill"), cases=("prefill-1",))
    record = report.cases[0]
    assert report.verdict == "mismatch"
    assert (record.flips, record.near_ties, record.top1) == (1, 0, 0.0)
    choices = record.top_differences[0].choices
    assert choices[0].expected == max(choice.expected for choice in choices)
    loose = run(bundle, with_outputs(flip, "prefill"), cases=("prefill-1",), tol=100.0)
    assert loose.verdict == "match"
    assert (loose.cases[0].flips, loose.cases[0].near_ties) == (1, 1)
    assert any("likeliest token differs at 1 position" in note for note in loose.questions[0].notes)


@pytest.mark.parametrize("bad", [{"tol": float("nan")}, {"tol": -1.0}, {"tol": float("inf")}, {"budget": float("inf")}])
def test_a_tolerance_that_would_pass_anything_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(TraceError, match="finite"):
        JudgeOptions((RunnerSpec("ort"),), **bad)  # type: ignore[arg-type]


def test_vectors_that_lack_a_cache_cannot_tell(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", float64=False)
    (entry,) = (case for case in bundle.manifest.cases if case.name == "prefill-1")
    path = bundle.root / "vectors" / f"{entry.rows[0].sequence}.npz"
    with np.load(path) as archive:
        kept = {key: archive[key] for key in archive.files if key != "cache.1.value"}
    np.savez(path, **kept)
    report = run(Bundle.open(bundle.root, allow_modified=True), cases=("prefill-1",))
    assert report.verdict == "error"
    assert "cache.1.value" in report.cases[0].message


def test_messages_name_no_folder_of_this_machine(bundle: Bundle) -> None:
    def edit(_kind: str, _outputs: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError(f"cannot map {bundle.root}/prefill.onnx")

    report = run(bundle, lambda: Decoder(edit=edit), cases=("prefill-1",))
    assert report.cases[0].message == "RuntimeError: cannot map BUNDLE/prefill.onnx"


def test_a_case_that_starts_in_the_decode_graph_still_does_after_it_was_saved(bundle: Bundle) -> None:
    graphs: list[str] = []

    def edit(kind: str, outputs: dict[str, Any]) -> dict[str, Any]:
        graphs.append(kind)
        return outputs

    assert run(bundle, lambda: Decoder(edit=edit), cases=("decode-only",)).verdict == "match"
    assert set(graphs) == {"decode"}


def test_model_has_both_kinds_of_slots() -> None:
    assert MODEL.pattern == "sF"


def test_only_the_outputs_that_were_asked_for_are_judged_and_the_report_says_so(bundle: Bundle) -> None:
    cache_fault = with_outputs(add("present.0.key", 1e-3, (0, 0, 0, 0)), "prefill")
    logits_fault = with_outputs(add("logits", 1e-3, (0, 0, 0)), "prefill")
    case = ("prefill-15",)
    report = run(bundle, cache_fault, cases=case, outputs=("logits",))
    assert report.verdict == "match"
    assert {result.tensor for result in report.results} == {"logits"}
    assert any("no other output was looked at" in note for note in report.questions[0].notes)
    assert report.command.endswith("--output logits --case prefill-15")
    assert run(bundle, logits_fault, cases=case, outputs=("logits",)).verdict == "mismatch"
    assert run(bundle, cache_fault, cases=case, outputs=("present.*",)).verdict == "mismatch"
    assert run(bundle, logits_fault, cases=case, outputs=("present.*",)).verdict == "match"


def test_an_output_that_was_asked_for_and_is_missing_is_a_mismatch(bundle: Bundle) -> None:
    missing = with_outputs(lambda outputs: outputs.pop("logits"))
    assert run(bundle, missing, cases=("decode-across",), outputs=("logits",)).verdict == "mismatch"


def test_an_output_pattern_that_matches_nothing_is_refused(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="no output matches 'logit'"):
        run(bundle, outputs=("logits", "logit"))
    with pytest.raises(BundleError, match="--self"):
        run(bundle, outputs=("logits",), identities=True)


def test_a_mismatch_that_rounding_can_explain_is_said_to_be_so_and_a_larger_one_is_not(bundle: Bundle) -> None:
    def notes(amount: float) -> str:
        report = run(bundle, with_outputs(add("logits", amount, (0, 0, 0))), cases=("decode-across",), tol=1e-9)
        assert report.verdict == "mismatch"
        return " ".join(report.questions[0].notes)

    own = bundle.manifest.noise["logits"]
    assert own > 1e-9
    assert "rounding" in notes(own)
    assert "rounding can do that" not in notes(1000 * own)
