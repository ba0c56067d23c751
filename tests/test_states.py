"""Models that keep states beside or instead of keys and values, judged and, apart from that, replayed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.spec import ExportOptions
from kvparity.runners.base import RunnerSpec
from kvparity.runners.compare.judge import JudgeOptions, judge
from kvparity.runners.report.report import Report
from tests.families import save_checkpoint, small_config
from tests.states import CALLS, SINGLE_STEPS, STATES, plain_errors

pytest.importorskip("torch", reason="the exporter's extra is not installed")

QUICK = ("lfm2", "mamba2", "olmo_hybrid")
NAMES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in STATES]


@pytest.fixture(scope="module", params=NAMES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle]:
    """(checkpoint, bundle) of a small model of each kind; tests must not change them."""
    folder = tmp_path_factory.mktemp("states")
    return exported(request.param, folder)


def exported(name: str, folder: Path, **options: str) -> tuple[Path, Bundle]:
    from kvparity.exporter.checkpoint.source import resolve
    from kvparity.exporter.export import export
    from kvparity.runners.reference.record import record_cases

    checkpoint = save_checkpoint(small_config(*STATES[name]), folder / "hf")
    how = ExportOptions(**options)  # type: ignore[arg-type]
    bundle = export(resolve(str(checkpoint)), folder / "bundle", how, record=record_cases, limit=150, in_process=True)
    return checkpoint, bundle


def judged(bundle: Bundle, **options: bool) -> Report:
    runners = (RunnerSpec("ort", {"threads": "1"}),)
    return judge(bundle, JudgeOptions(runners, (), tol="auto", budget=4.0, **options))  # type: ignore[arg-type]


def test_a_model_with_states_computes_what_pytorch_computes(made: tuple[Path, Bundle]) -> None:
    _, bundle = made
    report = judged(bundle, exact=True)
    assert report.verdict == "match", report.first_divergence
    kinds = {result.tensor.rpartition(".")[2] for result in report.results}
    assert kinds >= {part for slot in bundle.model.slots for part in slot.parts}


def test_a_model_with_states_gives_the_same_however_its_tokens_are_cut(made: tuple[Path, Bundle]) -> None:
    clamps = made[1].model.model_type in ("nemotron_h", "zamba2")  # not single tokens: other cuts give other numbers
    assert judged(made[1], identities=True).verdict == ("mismatch" if clamps else "match")


def test_plain_onnxruntime_is_as_close_to_float64_as_pytorch(made: tuple[Path, Bundle]) -> None:
    checkpoint, bundle = made
    graphs, pytorch = plain_errors(checkpoint, bundle.root, SINGLE_STEPS if bundle.model.single_steps else CALLS)
    assert graphs.rms <= 2 * pytorch.rms, (graphs, pytorch)
    assert graphs.largest <= 2 * pytorch.largest, (graphs, pytorch)


def test_every_bundle_with_states_carries_a_verify_that_says_match(made: tuple[Path, Bundle]) -> None:
    import subprocess
    import sys

    script = made[1].root / "verify.py"
    command = [sys.executable, str(script), "--tol", "1e-3"]  # some of these models amplify rounding to over 1e-4
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_conversation_on_bound_buffers_is_the_played_one_and_can_start_again(made: tuple[Path, Bundle]) -> None:
    from kvparity.runners.decode.decoders import PlayedDecoder
    from kvparity.runners.engines._ort_decoder import OrtDecoder
    from kvparity.runners.engines.ort import open_session

    tokens = np.random.default_rng(5).integers(3, made[1].model.vocab_size, 14)
    calls = (tokens[:9], *(tokens[n : n + 1] for n in range(9, 13)), tokens[12:])
    played = PlayedDecoder(made[1], open_session(made[1], {"threads": "1"}))
    bound = OrtDecoder(made[1], {"threads": "1"})
    wanted = [played.feed(call).copy() for call in calls]
    for _ in range(2):
        bound.reset()
        for call, logits in zip(calls, wanted, strict=True):
            assert np.abs(bound.feed(call) - logits).max() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lfm2", "kimi_linear", "qwen3_next", "falcon_h1", "nemotron_h"])
@pytest.mark.parametrize(
    "options",
    [{"profile": "modern"}, {"profile": "ort"}, {"layout": "static"}, {"layout": "static", "profile": "modern"}],
    ids=lambda options: "-".join(options.values()),
)
def test_states_in_other_profiles_and_layouts(name: str, options: dict[str, str], tmp_path: Path) -> None:
    _, bundle = exported(name, tmp_path, **options)
    report = judged(bundle, exact=True)
    assert report.verdict == "match", report.first_divergence


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["lfm2", "qwen3_5", "mamba2"])
def test_recurrent_states_are_float32_in_half_type_bundles(name: str, dtype: str, tmp_path: Path) -> None:
    _, bundle = exported(name, tmp_path, dtype=dtype)
    for port in bundle.manifest.graphs["decode"].spec.outputs[1:]:
        assert port.dtype == ("float32" if port.name.endswith(("recurrent_state", "ssm_state")) else dtype), port
    assert judged(bundle, exact=True).verdict == "match"


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["int4", "int8"])
def test_quantised_weights_of_a_model_with_states(quantize: str, tmp_path: Path) -> None:
    _, bundle = exported("qwen3_5", tmp_path, quantize=quantize, profile="ort")
    assert judged(bundle, exact=True).verdict == "match"


def test_cases_that_have_no_right_answer_are_left_out_and_named(made: tuple[Path, Bundle]) -> None:
    from kvparity.exporter.contract.features import unproven

    manifest = made[1].manifest
    single = manifest.model.model_type in ("mamba", "falcon_mamba", "jamba", "zamba")
    several = [case.name for case in manifest.cases if max(case.chunks[1:], default=1) > 1]
    assert bool(several) is not single
    assert manifest.model.single_steps is single
    assert any("several tokens after the first call" in line for line in unproven(manifest.model)) is single
    assert (manifest.cut > 0) is (single or manifest.model.model_type in ("nemotron_h", "zamba2"))


def test_softplus_is_not_onnx_runtime_s_which_rounds_one_plus_the_exponential(made: tuple[Path, Bundle]) -> None:
    import onnx

    for kind in made[1].manifest.graphs:
        graph = onnx.load(made[1].graph_path(kind), load_external_data=False).graph
        assert "Softplus" not in {node.op_type for node in graph.node}


def test_a_hybrid_model_without_attention_is_refused_as_transformers_fails_on_it(tmp_path: Path) -> None:
    from kvparity.exporter.checkpoint.source import resolve
    from kvparity.exporter.contract.errors import ExportError
    from kvparity.exporter.export import export

    config = small_config("qwen3_next", {**STATES["qwen3_next"][1], "layer_types": ["linear_attention"] * 3})
    checkpoint = resolve(str(save_checkpoint(config, tmp_path / "hf")))
    with pytest.raises(ExportError, match="no layer has attention"):
        export(checkpoint, tmp_path / "bundle", ExportOptions(), in_process=True)


def test_a_recurrence_that_is_not_known_is_refused_by_what_computes_it(tmp_path: Path) -> None:
    from kvparity.exporter.checkpoint.source import resolve
    from kvparity.exporter.contract.errors import ExportError
    from kvparity.exporter.export import export

    checkpoint = resolve(str(save_checkpoint(small_config("recurrent_gemma"), tmp_path / "hf")))
    with pytest.raises(ExportError, match="computes its recurrence inside RecurrentGemmaRecurrentBlock"):
        export(checkpoint, tmp_path / "bundle", ExportOptions(), in_process=True)


NAMES_IN_JS = {
    "lfm2": ("lfm2", ["conv", "full_attention", "conv"], "past_conv.0", "present_conv.2"),
    "olmo_hybrid": (
        *("qwen3_next", ["linear_attention", "full_attention", "linear_attention"]),
        *("past_recurrent.0", "present_recurrent.2"),
    ),
}


def test_packages_of_models_with_states_have_the_names_of_their_tools(
    made: tuple[Path, Bundle], tmp_path: Path
) -> None:
    import json

    import onnx

    from kvparity.exporter.contract.errors import PackageError
    from kvparity.exporter.contract.files import copy_file
    from kvparity.exporter.contract.packages import genai, transformersjs

    bundle = made[1]
    if not any(slot.kv_heads for slot in bundle.model.slots):
        for tool in (genai, transformersjs):
            with pytest.raises(PackageError, match="counts tokens by the rows of keys"):
                tool.refuse(bundle)
        return
    if bundle.model.model_type not in NAMES_IN_JS:
        pytest.skip("names are tried on two kinds")
    kind, types, past, present = NAMES_IN_JS[bundle.model.model_type]
    (tmp_path / "js").mkdir()
    transformersjs.refuse(bundle)
    transformersjs.write(bundle, tmp_path / "js", copy_file)
    config = json.loads((tmp_path / "js" / "config.json").read_text())
    assert (config["model_type"], config["layer_types"]) == (kind, types)
    graph = onnx.load(tmp_path / "js" / "onnx" / "model.onnx", load_external_data=False).graph
    inputs = [port.name for port in graph.input]
    assert past in inputs
    assert "past_key_values.1.key" in inputs
    assert present in [port.name for port in graph.output]

    (tmp_path / "genai").mkdir()
    genai.refuse(bundle)
    genai.write(bundle, tmp_path / "genai", copy_file)
    decoder = json.loads((tmp_path / "genai" / "genai_config.json").read_text())["model"]["decoder"]
    assert decoder["inputs"]["past_conv_names"] == "past_key_values.%d.conv_state"
    assert ("past_recurrent_names" in decoder["inputs"]) is (kind == "qwen3_next")
    assert decoder.get("layer_types") == (types if kind == "lfm2" else None)
