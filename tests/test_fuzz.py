"""The fuzzer's own rules: what counts as a pass, what is printed, and a few draws in the default run."""

from __future__ import annotations

import json
import time

import pytest

from tests.draws import Draw, checkpoint_draws, state_draws
from tests.fuzz import Outcome, attempt, check, collect, main, shrunk, summary
from tests.fuzz_checkpoints import check_checkpoint

pytest.importorskip("torch", reason="the exporter's extra is not installed")
PLAIN: Draw = {
    "model_type": "gemma3_text",
    "config": {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 3},
    "case": {"chunks": [4, 1, 3], "pads": [0, 2], "first": "prefill"},
    "options": {"layout": "dynamic", "profile": "portable"},
}


def test_drawn_modules_compute_what_pytorch_computes() -> None:
    outcomes = [attempt(draw, lambda draw: check(draw, graphs=False), 60.0) for draw in collect(range(8))]
    assert {outcome.kind for outcome in outcomes} <= {"match", "refused"}, outcomes


def test_drawn_modules_with_states_compute_what_pytorch_computes() -> None:
    drawn = collect(range(6), state_draws)
    outcomes = [attempt(draw, lambda draw: check(draw, graphs=False), 60.0) for draw in drawn]
    assert {outcome.kind for outcome in outcomes} <= {"match", "refused"}, outcomes


def test_a_drawn_module_with_another_window_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from kvparity.exporter.model.layouts import dynamic

    right = dynamic.Cache.mask

    def wrong(self, layer):  # type: ignore[no-untyped-def]
        return right(self, layer if layer.window is None else replace(layer, window=layer.window + 1))

    assert attempt(PLAIN, lambda draw: check(draw, graphs=False), 60.0) == Outcome("match")
    monkeypatch.setattr(dynamic.Cache, "mask", wrong)
    monkeypatch.setattr(dynamic.Cache, "masks", lambda self: {x.index: self.mask(x) for x in self.spec.layers})
    assert attempt(PLAIN, lambda draw: check(draw, graphs=False), 60.0).kind == "failed"


SAVED: Draw = {
    "stored": "bfloat16", "named": "torch_dtype", "wrapper": None, "head": "other", "tied": True, "shards": 2,
    "stale": "copy", "extra": True, "missing": False, "ids": {"pad_token_id": -1}, "generation_config": False,
    "old_rope": True,
}  # fmt: skip
CHECKPOINT: Draw = {
    "model_type": "llama",
    "config": {"num_hidden_layers": 1, "tie_word_embeddings": True},
    "checkpoint": SAVED,
    "options": {"dtype": "float32", "profile": "portable"},
    "recorded": False,
    "limit": None,
}


@pytest.mark.slow
def test_a_checkpoint_is_compared_with_what_transformers_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert attempt(CHECKPOINT, check_checkpoint, 60.0) == Outcome("match")
    missing = {**CHECKPOINT, "checkpoint": {**SAVED, "missing": True}}
    assert "its weights lack" in attempt(missing, check_checkpoint, 60.0).words
    monkeypatch.setattr("kvparity.exporter.checkpoint.text_config._both_heads_differ", lambda *_: False)
    failed = attempt(CHECKPOINT, check_checkpoint, 60.0)
    assert (failed.kind, "logits: off by" in failed.words) == ("failed", True)


def test_drawn_checkpoints_are_the_same_on_every_run_and_are_counted() -> None:
    drawn = collect(range(30), checkpoint_draws)
    assert drawn == collect(range(30), checkpoint_draws)
    lines = "\n".join(summary(drawn, [Outcome("match")] * len(drawn)))
    for field in ("wrapper", "head", "tied", "shards", "stale", "stored"):
        assert f"\n{field}:" in lines


def test_a_draw_out_of_time_is_no_pass() -> None:
    def forever(draw: Draw) -> str:
        while True:
            try:
                time.perf_counter()
            except Exception:  # what is tried may catch whatever an engine raises
                return "match"

    outcome = attempt(PLAIN, forever, 0.05)
    assert outcome == Outcome("out of time")
    assert summary([PLAIN], [outcome]) == ["1 draws: 0 match, 0 refused, 0 failed, 1 out of time"]


def test_an_export_that_breaks_is_no_refusal() -> None:
    broken = "stage check: prefill.onnx: operators ['CastLike'] are not in profile 'portable'"
    assert attempt(PLAIN, lambda draw: broken, 1.0).kind == "failed"
    narrow = "operators ['Range'] are not in profile 'bare'; use --profile portable"
    assert attempt(PLAIN, lambda draw: narrow, 1.0).kind == "refused"
    assert attempt(PLAIN, lambda draw: "--batch 0: expected at least 1", 1.0).kind == "refused"


def test_a_failure_is_shrunk_to_what_it_needs() -> None:
    def fails(draw: Draw) -> str:
        assert draw["config"].get("sliding_window", 0) < 4 or len(draw["case"]["chunks"]) < 2
        return "match"

    outcomes = [attempt(draw, fails, 5.0) for draw in collect(range(60))]
    number = next(index for index, outcome in enumerate(outcomes) if outcome.kind == "failed")
    smallest = shrunk(number, outcomes[number], lambda draw: attempt(draw, fails, 5.0))
    assert smallest["config"]["sliding_window"] == 4
    assert smallest["case"]["chunks"] == [1, 1]
    assert smallest["config"]["num_hidden_layers"] == 1


def test_a_summary_counts_what_matched_by_field_and_refusals_by_reason() -> None:
    (draw,) = collect(range(1))
    lines = summary([draw, draw, draw], [Outcome("match"), Outcome("match"), Outcome("refused", "why")])
    assert lines[0] == "3 draws: 2 match, 1 refused, 0 failed, 0 out of time"
    assert "  refused 1x: why" in lines
    assert f"{'model type:':24}{draw['model_type']} 2x" in lines


def test_the_command_that_is_printed_repeats_a_draw(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--config", json.dumps(collect(range(1))[0]), "--no-graphs"], standalone_mode=False)
    assert stopped.value.code == 0
    assert "1 draws: 1 match" in capsys.readouterr().out
