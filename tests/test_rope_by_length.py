"""Rotary frequencies that change with the length of a call: longrope and dynamic NTK scaling, across the switch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.errors import ExportError
from kvparity.exporter.contract.features import unproven
from kvparity.exporter.contract.ports import resolve_options
from kvparity.exporter.contract.schedule import default_cases
from kvparity.exporter.contract.spec import ExportOptions
from kvparity.runners.base import RunnerSpec
from kvparity.runners.compare.judge import JudgeOptions, judge
from tests.families import save_checkpoint, small_config
from tests.plain_judge import graph_logits_by_call, model_logits_by_call

torch = pytest.importorskip("torch", reason="the exporter's extra is not installed")

SWITCH = 16
LONGROPE = {
    "original_max_position_embeddings": SWITCH,
    "max_position_embeddings": 4 * SWITCH,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "sliding_window": None,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": SWITCH,
        "short_factor": [1.0, 1.02, 1.1, 1.3],
        "long_factor": [1.2, 4.0, 24.0, 60.0],
    },
}
DYNAMIC = {
    "max_position_embeddings": SWITCH,
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
}
BY_LAYER_TYPE = {
    "max_position_embeddings": SWITCH,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": {
        "full_attention": DYNAMIC["rope_parameters"],
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "longrope": ("phi3", LONGROPE),
    "dynamic": ("llama", DYNAMIC),
    "dynamic by layer type": ("gemma3_text", BY_LAYER_TYPE),
}


@pytest.fixture(scope="module", params=list(MODELS))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Path]:
    from kvparity.exporter.checkpoint.source import resolve
    from kvparity.exporter.export import export
    from kvparity.runners.reference.record import record_cases

    folder = tmp_path_factory.mktemp(request.param)
    source = save_checkpoint(small_config(*MODELS[request.param]), folder / "hf")
    options = ExportOptions()
    return export(resolve(str(source)), folder / "bundle", options, record=record_cases, in_process=True), source


def loaded(source: Path) -> Any:
    """A model without anything left of earlier calls."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager", dtype=torch.float32).eval()


@pytest.mark.parametrize(
    "calls", [(15,), (16,), (17,), (40,), (13, 5, 1, 1), (16, 1, 1), (20, 9, 1), (1,) * 20], ids=str
)
def test_every_call_has_the_frequencies_that_transformers_gives_it(
    exported: tuple[Bundle, Path], calls: tuple[int, ...]
) -> None:
    bundle, source = exported
    ids = np.random.default_rng(3).integers(3, bundle.model.vocab_size, sum(calls))
    expected = model_logits_by_call(loaded(source), ids, calls)
    found = graph_logits_by_call(bundle.root, ids, calls)
    assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max()


def test_the_switch_matters_to_the_logits_that_are_compared(exported: tuple[Bundle, Path]) -> None:
    """Else a graph with one table for all lengths would pass as well."""
    bundle, source = exported
    ids = np.random.default_rng(3).integers(3, bundle.model.vocab_size, 40)
    once, cut = (model_logits_by_call(loaded(source), ids, calls) for calls in ((40,), (13, 27)))
    assert np.abs(once - cut).max() > 1e-3 * np.abs(once).max()


def test_it_matches_on_both_sides_in_every_case_and_is_exact(exported: tuple[Bundle, Path]) -> None:
    bundle, _ = exported
    assert bundle.model.rope_switch == SWITCH
    assert bundle.model.max_position == 4 * SWITCH
    names = {case.name for case in bundle.manifest.cases}
    assert {"prefill-15", "prefill-16", "prefill-17", "rope-switch-steps", "rope-switch-chunk"} <= names
    report = judge(bundle, JudgeOptions((RunnerSpec("ort", {"threads": "1"}),), tol="auto", exact=True))
    assert report.verdict == "match", report.questions
    assert bundle.manifest.noise["logits"] < 1e-4, "PyTorch's float32 error, not what cutting makes of the model"


def test_one_table_for_a_host_is_refused(exported: tuple[Bundle, Path]) -> None:
    with pytest.raises(ExportError, match=r"changes its rotary frequencies in calls beyond 16 positions"):
        resolve_options(ExportOptions(profile="bare"), exported[0].model)


def test_text_is_continued_across_the_switch_as_transformers_continues_it(exported: tuple[Bundle, Path]) -> None:
    """Phi-3's generate() drops the cache there and prefills anew; Llama's goes on."""
    from kvparity.runners.decode.decoders import open_decoder
    from kvparity.runners.decode.generate import Sampling, generate_tokens

    bundle, source = exported
    model = loaded(source)
    assert bundle.model.rope_restart == (model.config.model_type == "phi3")
    prompt = np.random.default_rng(8).integers(3, bundle.model.vocab_size, SWITCH - 6)
    with torch.no_grad():
        made = model.generate(
            torch.tensor(prompt[None]), max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    expected = made[0, len(prompt) :].tolist()
    decoder = open_decoder(bundle, RunnerSpec("ort", {"threads": "1"}))
    try:
        found = list(generate_tokens(bundle, decoder, prompt, 24, Sampling()))
    finally:
        decoder.close()
    assert found == expected[: len(found)]
    assert len(found) > 10 or len(found) == len(expected), "it goes on beyond the switch"


def test_a_model_that_branches_on_values_is_refused_in_plain_words(tmp_path: Path) -> None:
    """PhiMoE chooses its magnitudes by an ``if`` on the last position."""
    from kvparity.exporter.checkpoint.source import resolve
    from kvparity.exporter.export import export

    rope = {**LONGROPE["rope_parameters"], "short_mscale": 1.1, "long_mscale": 1.3}  # type: ignore[dict-item]
    config = small_config("phimoe", {**LONGROPE, "num_local_experts": 4, "rope_parameters": rope})
    checkpoint = resolve(str(save_checkpoint(config, tmp_path / "hf")))
    with pytest.raises(ExportError, match=r"^stage trace: phimoe: .*branches by the value of a tensor"):
        export(checkpoint, tmp_path / "bundle", ExportOptions(), in_process=True)


def test_a_schedule_below_the_switch_says_that_it_does_not_prove_what_is_beyond(exported: tuple[Bundle, Path]) -> None:
    model = replace(exported[0].model, rope_switch=4096, max_position=131_072)
    cases = default_cases(model)
    assert any("beyond 4096 positions" in item for item in unproven(model, [case.total for case in cases]))
    assert not any("positions" in item for item in unproven(exported[0].model, [17]))
    assert any("rows on both sides of position" in item for item in unproven(exported[0].model, [17]))


def test_rows_of_a_batch_are_of_one_length_where_the_longest_sets_the_frequencies(
    exported: tuple[Bundle, Path],
) -> None:
    batches = [case for case in default_cases(exported[0].model) if case.batch > 1 and case.total > SWITCH]
    assert batches
    assert all(set(case.pads) == {0} for case in batches)
