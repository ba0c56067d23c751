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
from tests.states import STATES, plain_errors

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
    clamps = bundle.model.model_type == "nemotron_h"  # single tokens are not clamped: other cuts give other numbers
    report = judged(bundle, exact=True, identities=not clamps)
    assert report.verdict == "match", report.first_divergence
    kinds = {result.tensor.rpartition(".")[2] for result in report.results}
    assert kinds >= {part for slot in bundle.model.slots for part in slot.parts}


def test_plain_onnxruntime_is_as_close_to_float64_as_pytorch(made: tuple[Path, Bundle]) -> None:
    checkpoint, bundle = made
    graphs, pytorch = plain_errors(checkpoint, bundle.root)
    assert graphs.rms <= 2 * pytorch.rms, (graphs, pytorch)
    assert graphs.largest <= 3 * pytorch.largest, (graphs, pytorch)  # the largest of 28,000 is a matter of luck


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
@pytest.mark.parametrize("name", ["lfm2", "kimi_linear", "qwen3_5", "falcon_h1", "nemotron_h"])
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


def test_a_recurrence_that_is_not_known_is_refused_by_its_layer_type(tmp_path: Path) -> None:
    from kvparity.exporter.checkpoint.source import resolve
    from kvparity.exporter.contract.errors import ExportError
    from kvparity.exporter.export import export

    checkpoint = resolve(str(save_checkpoint(small_config("mamba"), tmp_path / "hf")))
    with pytest.raises(ExportError, match="the recurrence of its 'linear_attention' layers is none that is known"):
        export(checkpoint, tmp_path / "bundle", ExportOptions(), in_process=True)
