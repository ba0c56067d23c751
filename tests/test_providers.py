"""Profile ``ort`` for GPUs: GroupQueryAttention, judged on the CPU like any other graph; and the runner's providers."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.errors import EngineUnavailableError, ExportError
from kvparity.exporter.contract.spec import ExportOptions
from kvparity.runners.base import RunnerSpec, parse_runner
from kvparity.runners.compare.judge import JudgeOptions, judge
from kvparity.runners.engines.ort import open_session
from tests.families import FAMILIES, make_config, save_checkpoint

pytest.importorskip("torch", reason="the exporter's extra is not installed")
CASES = ("decode-far", "chunk-7", "batch-ragged", "prefill-*")


def export_to(folder: Path, options: ExportOptions, family: str = "gemma3") -> Bundle:
    from kvparity.exporter.checkpoint.source import resolve
    from kvparity.exporter.export import export
    from kvparity.runners.reference.record import record_cases

    found = next(item for item in FAMILIES if item.name == family)
    checkpoint = resolve(str(save_checkpoint(make_config(found), folder / "hf")))
    return export(checkpoint, folder / "bundle", options, record=record_cases, limit=40, in_process=True)


@pytest.fixture(scope="module")
def webgpu(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A Gemma 3 of a few thousand parameters, window 8."""
    return export_to(tmp_path_factory.mktemp("webgpu"), ExportOptions(profile="ort", provider="webgpu"))


def test_grouped_queries_match_and_are_exact(webgpu: Bundle) -> None:
    import onnx_ir as ir

    for kind in ("prefill", "decode"):
        operators = [node.op_type for node in ir.load(webgpu.graph_path(kind)).graph]
        assert operators.count("GroupQueryAttention") == len(webgpu.model.layers)
        assert "Attention" not in operators
        assert "Softmax" not in operators
    report = judge(webgpu, JudgeOptions((RunnerSpec("ort"),), CASES, tol="auto", exact=True))
    assert report.verdict == "match", report.first_divergence


def test_another_bias_is_a_mismatch_in_both_questions(webgpu: Bundle, tmp_path: Path) -> None:
    import shutil

    import onnx_ir as ir

    root = Path(shutil.copytree(webgpu.root, tmp_path / "bundle"))
    model = ir.load(root / "decode.onnx")
    nodes = [node for node in model.graph if node.op_type == "GroupQueryAttention"]
    biases = list(dict.fromkeys(node.inputs[10] for node in nodes))
    assert len(biases) == 2
    nodes[-1].replace_input_with(10, biases[0] if nodes[-1].inputs[10] is biases[1] else biases[1])
    ir.save(model, root / "decode.onnx")
    edited = Bundle.open(root, allow_modified=True)
    report = judge(edited, JudgeOptions((RunnerSpec("ort"),), ("decode-far",), tol="auto", exact=True))
    assert report.verdict != "match"


def test_several_tokens_after_a_past_in_a_batch_are_no_case_of_such_a_bundle(webgpu: Bundle) -> None:
    names = {case.name for case in webgpu.manifest.cases}
    assert "batch-ragged" in names
    assert "batch-chunks" not in names


@pytest.mark.parametrize(("provider", "grouped"), [("cpu", False), ("cuda", False), ("webgpu", True)])
def test_float32_queries_are_grouped_for_webgpu_alone(provider: str, grouped: bool) -> None:
    assert ExportOptions(profile="ort", provider=provider).groups_queries == grouped  # type: ignore[arg-type]
    assert not ExportOptions(profile="modern", provider=provider).groups_queries  # type: ignore[arg-type]
    half = ExportOptions(profile="ort", provider=provider, dtype="float16")  # type: ignore[arg-type]
    assert half.groups_queries == (provider != "cpu")


@pytest.mark.parametrize(
    "options",
    [ExportOptions(provider="cuda"), ExportOptions(profile="ort", layout="shared", provider="webgpu")],
    ids=str,
)
def test_providers_belong_to_the_dynamic_ort_profile(tmp_path: Path, options: ExportOptions) -> None:
    with pytest.raises(ExportError, match="needs --profile ort and the dynamic layout"):
        export_to(tmp_path, options)


def test_the_runner_takes_a_provider_in_any_case_with_its_settings(webgpu: Bundle) -> None:
    spec = parse_runner("ort:provider=cpu,provider.arena_extend_strategy=kSameAsRequested")
    info = open_session(webgpu, spec.options).info
    assert info.settings["provider"] == "CPUExecutionProvider"
    assert info.settings["provider.arena_extend_strategy"] == "kSameAsRequested"
    assert open_session(webgpu, {"provider": "CPU"}).info.settings["provider"] == "CPUExecutionProvider"


def test_a_provider_that_this_build_lacks_is_refused_in_one_line(webgpu: Bundle) -> None:
    with pytest.raises(
        EngineUnavailableError, match=r"provider 'warp' is not in this build of onnxruntime \d.*cpu"
    ) as e:
        open_session(webgpu, {"provider": "warp"})
    assert "\n" not in str(e.value)
