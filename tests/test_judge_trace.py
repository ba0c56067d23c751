"""Saved traces: what was saved replays bit for bit, and what is missing or foreign is never a pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.errors import EngineUnavailableError, TraceError
from kvparity.runners.base import RunnerSpec
from kvparity.runners.compare.judge import JudgeOptions, judge
from kvparity.runners.engines import trace_file
from kvparity.runners.isolation.process import open_runner
from kvparity.runners.report.report import Report
from kvparity.runners.report.words import verdict_sentence
from tests.synthetic import Decoder, make_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("trace") / "bundle")


@pytest.fixture
def saved(bundle: Bundle, tmp_path: Path) -> Path:
    path = tmp_path / "saved.npz"
    options = JudgeOptions((RunnerSpec("ort"),), save_trace=path)
    assert judge(bundle, options, opener=lambda _bundle, _spec: Decoder()).verdict == "match"
    return path


def replay(bundle: Bundle, path: Path, **options: Any) -> Report:
    spec = RunnerSpec("trace_file", {"file": str(path)})
    return judge(bundle, JudgeOptions((spec,), **options), opener=open_runner)


def rewrite(source: Path, target: Path, change: Any) -> Path:
    with np.load(source) as archive:
        arrays = {key: archive[key] for key in archive.files}
    changed = change(arrays)
    np.savez(target, **(arrays if changed is None else changed))
    return target


def test_a_saved_trace_replays_as_a_runner(bundle: Bundle, saved: Path) -> None:
    report = replay(bundle, saved)
    assert report.verdict == "match"
    assert report.runners[0].name == "trace:saved.npz"
    assert report.runners[0].settings["engine"] == "synthetic 1.0"


def test_the_same_outputs_give_the_same_bytes(bundle: Bundle, saved: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.npz"
    options = JudgeOptions((RunnerSpec("ort"),), save_trace=again)
    judge(bundle, options, opener=lambda _bundle, _spec: Decoder())
    assert again.read_bytes() == saved.read_bytes()


def test_one_changed_number_in_a_trace_is_found(bundle: Bundle, saved: Path, tmp_path: Path) -> None:
    def change(arrays: dict[str, Any]) -> None:
        arrays["handoff-6/step_2/present.1.value"][0, 1, 3, 0] += 0.5

    report = replay(bundle, rewrite(saved, tmp_path / "changed.npz", change))
    first = report.first_divergence
    assert first is not None
    assert (first.case, first.step, first.tensor, first.position) == ("handoff-6", 2, "present.1.value", 3)
    assert report.command.endswith("--trace changed.npz --case handoff-6")


def test_keys_need_no_case_where_one_case_is_selected(bundle: Bundle, saved: Path, tmp_path: Path) -> None:
    prefix = "handoff-6/"
    single = rewrite(
        saved,
        tmp_path / "single.npz",
        lambda arrays: {key.removeprefix(prefix): v for key, v in arrays.items() if key.startswith(prefix)},
    )
    assert replay(bundle, single, cases=("handoff-6",)).verdict == "match"
    assert replay(bundle, single, cases=("handoff-7",)).verdict == "mismatch"
    unnamed = replay(bundle, single)
    assert unnamed.verdict == "error"
    assert "does not name its case" in unnamed.runners[0].message


def test_a_missing_output_is_a_mismatch_and_a_missing_case_an_error(
    bundle: Bundle, saved: Path, tmp_path: Path
) -> None:
    gone = "prefill-7/step_0/present.0.key"
    lacking = rewrite(saved, tmp_path / "a.npz", lambda arrays: {k: v for k, v in arrays.items() if k != gone})
    assert replay(bundle, lacking, cases=("prefill-7",)).verdict == "mismatch"
    partial = rewrite(
        saved, tmp_path / "b.npz", lambda arrays: {k: v for k, v in arrays.items() if k.startswith("prefill")}
    )
    report = replay(bundle, partial, cases=("prefill-7", "handoff-6"))
    assert [record.verdict for record in report.cases] == ["match", "error"]
    assert "has no case 'handoff-6'" in report.cases[1].message


def test_inputs_in_a_trace_are_checked(bundle: Bundle, saved: Path, tmp_path: Path) -> None:
    tokens = bundle.vectors("prefill-7").case.tokens
    for shift, verdict in ((0, "match"), (1, "error")):

        def change(arrays: dict[str, Any], shift: int = shift) -> None:
            arrays["prefill-7/step_0/input_ids"] = tokens + shift

        path = rewrite(saved, tmp_path / f"inputs-{shift}.npz", change)
        assert replay(bundle, path, cases=("prefill-7",)).verdict == verdict


def test_more_calls_than_the_case_has_are_refused(bundle: Bundle, saved: Path, tmp_path: Path) -> None:
    def change(arrays: dict[str, Any]) -> None:
        arrays["prefill-7/step_1/logits"] = arrays["prefill-7/step_0/logits"]

    report = replay(bundle, rewrite(saved, tmp_path / "more.npz", change), cases=("prefill-7",))
    assert report.verdict == "error"
    assert "step_1" in report.cases[0].message


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "not a readable"), (b"PK\x03\x04 truncated", "not a readable"), (b"hello", "not a readable")],
)
def test_a_file_that_is_no_trace_cannot_tell(bundle: Bundle, tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    report = replay(bundle, path)
    assert report.verdict == "error"
    assert message in report.runners[0].message
    assert str(tmp_path) not in report.runners[0].message


def test_a_plain_array_and_foreign_keys_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    np.save(tmp_path / "array.npy", np.zeros(3))
    np.savez(tmp_path / "foreign.npz", weights=np.zeros(3))
    for name, message in (("array.npy", "not a readable"), ("foreign.npz", "not of the form"), ("no.npz", "no.npz")):
        report = replay(bundle, tmp_path / name)
        assert report.verdict == "error"
        assert message in report.runners[0].message


def test_an_interrupted_save_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "trace.npz"
    with pytest.raises(KeyboardInterrupt), trace_file.TraceWriter(path, "x"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_trace_takes_one_runner_and_a_folder_that_exists(bundle: Bundle, tmp_path: Path) -> None:
    two = JudgeOptions((RunnerSpec("ort"), RunnerSpec("ort", {"level": "none"})), save_trace=tmp_path / "t.npz")
    with pytest.raises(TraceError, match="one runner"):
        judge(bundle, two)
    lost = JudgeOptions((RunnerSpec("ort"),), save_trace=tmp_path / "missing" / "t.npz")
    with pytest.raises(TraceError, match="cannot be written"):
        judge(bundle, lost, opener=lambda _bundle, _spec: Decoder())


def test_bfloat16_survives_the_file(tmp_path: Path) -> None:
    import ml_dtypes

    from kvparity.exporter.contract.cases import Step

    values = np.asarray([[1.5, 2.0]], ml_dtypes.bfloat16)
    with trace_file.TraceWriter(tmp_path / "t.npz", "x") as writer:
        writer.add("a", Step(0, "prefill", 0, 2), {"logits": values})
    session = trace_file.TraceSession(tmp_path / "t.npz")
    assert session._file.read("a/step_0/logits").dtype == ml_dtypes.bfloat16


def test_without_a_file_the_runner_says_what_it_needs(bundle: Bundle) -> None:
    with pytest.raises(EngineUnavailableError, match=r"--trace FILE"):
        trace_file.open_session(bundle, {})


def test_the_documented_recipe_makes_a_trace_that_matches(bundle: Bundle, tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "trace-format.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    code = code.replace("BUNDLE", str(bundle.root)).replace("handoff-127", "handoff-6")
    session = Decoder()

    def my_engine(graph: str, past: dict[str, Any], **inputs: Any) -> dict[str, Any]:
        named = {name.replace("present", "past_key_values"): value for name, value in past.items()}
        return session.run(graph, {**inputs, **named})

    code = code.replace("mine.npz", str(tmp_path / "mine.npz"))
    exec(code, {"empty_caches": dict, "my_engine": my_engine})
    assert replay(bundle, tmp_path / "mine.npz", cases=("handoff-6",)).verdict == "match"


def logits_of(bundle: Bundle, case: str, *, last: bool = False) -> dict[str, Any]:
    """What a perfect engine records that keeps its caches to itself."""
    vectors = bundle.vectors(case)
    arrays = {}
    for step in vectors.case.steps():
        first = step.stop - 1 if last else step.start
        arrays[f"{case}/step_{step.index}/logits"] = vectors.arrays["logits"][:, first : step.stop].copy()
    return arrays


CASES = ("prefill-7", "handoff-6", "batch-ragged", "chunk-1")


@pytest.mark.parametrize("last", [False, True])
def test_a_recording_of_logits_alone_is_judged_for_what_it_holds(bundle: Bundle, tmp_path: Path, last: bool) -> None:
    known = [entry.name for entry in bundle.manifest.cases]
    cases = [name for name in CASES if name in known]
    assert any(len(entry.chunks) > 1 for entry in bundle.manifest.cases if entry.name in cases)
    arrays = {key: value for name in cases for key, value in logits_of(bundle, name, last=last).items()}
    np.savez(tmp_path / "logits.npz", **arrays)
    report = replay(bundle, tmp_path / "logits.npz", cases=tuple(cases), outputs=("logits",), locate=True)
    assert report.verdict == "match"
    assert report.last_logits == last
    first = verdict_sentence(report)
    assert ", logits only" in first
    assert ("last position only" in first) == last
    every = replay(bundle, tmp_path / "logits.npz", cases=tuple(cases))
    assert every.verdict == "mismatch"  # nothing said that the caches do not count

    arrays["handoff-6/step_1/logits"][0, -1, 3] += 0.5
    np.savez(tmp_path / "wrong.npz", **arrays)
    wrong = replay(bundle, tmp_path / "wrong.npz", cases=("handoff-6",), outputs=("logits",), locate=True)
    assert wrong.verdict == "mismatch"
    assert wrong.first_divergence is not None
    assert (wrong.first_divergence.step, wrong.first_divergence.tensor) == (1, "logits")


def test_zeros_in_place_of_caches_neither_help_nor_count(bundle: Bundle, tmp_path: Path) -> None:
    arrays = logits_of(bundle, "handoff-6")
    for step in bundle.vectors("handoff-6").case.steps():
        for slot, part in bundle.model.cache_names():
            rows = bundle.options.kept_rows(slot, step.stop)
            shape = slot.shape(part, 1, rows)
            arrays[f"handoff-6/step_{step.index}/present.{slot.slot}.{part}"] = np.zeros(shape, np.float32)
    np.savez(tmp_path / "zeros.npz", **arrays)
    logits = replay(bundle, tmp_path / "zeros.npz", cases=("handoff-6",), outputs=("logits",))
    assert logits.verdict == "match"
    assert ", logits only" in verdict_sentence(logits)
    assert {record.tensor for record in logits.tensors} == {"logits"}
    assert replay(bundle, tmp_path / "zeros.npz", cases=("handoff-6",)).verdict == "mismatch"


def test_a_call_that_was_not_recorded_is_missing_also_where_only_logits_count(bundle: Bundle, tmp_path: Path) -> None:
    arrays = logits_of(bundle, "handoff-6")
    del arrays["handoff-6/step_1/logits"]
    np.savez(tmp_path / "gap.npz", **arrays)
    report = replay(bundle, tmp_path / "gap.npz", cases=("handoff-6",), outputs=("logits",))
    assert report.verdict == "mismatch"


def test_one_position_in_place_of_several_is_the_last_ones_and_no_other(bundle: Bundle, tmp_path: Path) -> None:
    arrays = {key: value[:, :1] for key, value in logits_of(bundle, "prefill-7").items()}  # the first one's
    np.savez(tmp_path / "first.npz", **arrays)
    report = replay(bundle, tmp_path / "first.npz", cases=("prefill-7",), outputs=("logits",))
    assert report.verdict == "mismatch"
