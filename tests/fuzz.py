"""Random small decoders × random cases: each is refused cleanly, or computes exactly what PyTorch computes.

``python -m tests.fuzz -n 100`` draws configurations and cases; ``--config JSON`` repeats one, which is what a failure
prints. Every draw is compared in float64 with the module that is traced (milliseconds); every ``--graphs``-th draw is
also exported, and its graphs are compared in float64 (1e-10) and in ONNX Runtime (the budget).
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from exporter.cases import Case, left_padded, seeded_tokens
from exporter.errors import ExportError
from exporter.ports import graph_spec, settled
from exporter.spec import DECODE, PREFILL, ExportOptions, GraphKind, ModelSpec
from exporter.vectors import expected_outputs
from runners.base import RunnerInfo, RunnerSpec
from runners.layouts.dynamic import Player
from runners.layouts.static import Player as StaticPlayer
from runners.record import record_cases, reference_arrays
from tests.families import draw_weights, save_checkpoint, small_config

EXACT = 1e-10  # relative to the largest value; agreement is at 1e-13
BUDGET = 8.0
Draw = dict[str, Any]
_SLIDING = ("gemma4_text", "gemma3_text", "cohere2", "olmo3", "gpt_oss", "ministral")
_WINDOWED = ("mistral", "mixtral", "phi3", "starcoder2", "gemma2")
_PLAIN = ("llama", "mistral", "qwen3", "qwen3_moe", "mixtral", "phi3", "granite", "starcoder2", "gemma2", "smollm3")
_ROPED = ("llama", "qwen3", "smollm3", "olmo3", "mistral", "granite")
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
_ROPES: tuple[Draw, ...] = (
    {"rope_type": "default", "rope_theta": 10000.0},
    {"rope_type": "default", "rope_theta": 500000.0},
    {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32},
    {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, **_LLAMA3},
)
_WAYS = (
    ("dynamic", "portable"),
    ("static", "portable"),
    ("dynamic", "ort"),
    ("dynamic", "modern"),
    ("static", "modern"),
    ("dynamic", "bare"),
    ("static", "bare"),
)


@st.composite
def draws(draw: st.DrawFn) -> Draw:
    """A configuration and a case, as JSON."""
    model_type = draw(st.sampled_from((*_SLIDING, *_PLAIN)))
    heads = draw(st.sampled_from((1, 2, 4)))
    config: Draw = {
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "num_key_value_heads": draw(st.sampled_from([n for n in (1, 2, 4) if heads % n == 0])),
        "head_dim": draw(st.sampled_from((4, 8, 16))),
        "vocab_size": draw(st.integers(5, 40)),
        "tie_word_embeddings": draw(st.booleans()),
        "hidden_size": 16 * draw(st.integers(1, 2)),
    }
    if model_type in (
        *_SLIDING,
        *_WINDOWED,
    ):  # elsewhere the field is stray: transformers' cache heeds it, its masks don't
        config["sliding_window"] = draw(st.integers(1, 9))
    if model_type in _ROPED:
        config["rope_parameters"] = draw(st.sampled_from(_ROPES))
    if model_type in _SLIDING:
        kinds = st.sampled_from(("sliding_attention", "full_attention"))
        count = config["num_hidden_layers"]
        config["layer_types"] = draw(st.lists(kinds, min_size=count, max_size=count))
    if model_type == "gemma4_text":
        config |= draw(_gemma4(config))
    total = draw(st.integers(1, 24))
    case = draw(_case(total))
    return {"model_type": model_type, "config": config, "case": case, "options": draw(_options(total, case))}


@st.composite
def _options(draw: st.DrawFn, total: int, case: Draw) -> Draw:
    """Layout and profile; the static layout with buffers that just fit or do not, and any chunk and batch."""
    layout, profile = draw(st.sampled_from(_WAYS))
    options = {"layout": layout, "profile": profile, "sliding_cache": draw(st.sampled_from(("bounded", "full")))}
    if layout == "static":
        room = max(2, total + draw(st.integers(0, 3)))
        options |= {"max_len": room, "chunk": draw(st.integers(1, room)), "batch": draw(st.integers(1, 3))}
    return options


@st.composite
def _gemma4(draw: st.DrawFn, config: Draw) -> Draw:
    """What only Gemma 4 has; sharing layers come last and repeat kinds that came before."""
    config["layer_types"][-1] = "full_attention"
    first = set(config["layer_types"])
    shared = draw(st.integers(0, 2)) if config["num_hidden_layers"] > 1 else 0
    own = config["num_hidden_layers"] - shared
    if own < 1 or set(config["layer_types"][:own]) != first:
        shared = 0
    moe = draw(st.booleans())
    return {
        "num_kv_shared_layers": shared,
        "use_double_wide_mlp": draw(st.booleans()),
        "attention_k_eq_v": draw(st.booleans()),
        "global_head_dim": draw(st.sampled_from((4, 8, 16, 24))),
        "hidden_size_per_layer_input": draw(st.sampled_from((0, 4))),
        "vocab_size_per_layer_input": config["vocab_size"],
        "final_logit_softcapping": draw(st.sampled_from((None, 2.0))),
        "enable_moe_block": moe,
        **({"num_experts": draw(st.integers(2, 4)), "top_k_experts": 2, "moe_intermediate_size": 8} if moe else {}),
    }


@st.composite
def _case(draw: st.DrawFn, total: int) -> Draw:
    chunks: list[int] = []
    while sum(chunks) < total:
        chunks.append(draw(st.integers(1, total - sum(chunks))))
    rows = draw(st.integers(1, 3))
    pads = draw(st.lists(st.integers(0, total - 1), min_size=rows, max_size=rows))
    return {"chunks": chunks, "pads": pads, "first": draw(st.sampled_from((PREFILL, DECODE)))}


def check(draw: Draw, graphs: bool) -> str:
    """Compare one draw; ``"match"``, or the words of a clean refusal.

    Raises:
        AssertionError: A difference; says where.
    """
    config = small_config(
        draw["model_type"], {"bos_token_id": 2, "pad_token_id": 0, "eos_token_id": 1} | draw["config"]
    )
    options = ExportOptions(**draw.get("options", {}))
    try:
        _wrapper(copy.deepcopy(config), draw["case"], options)
        if graphs:
            _graphs(config, draw["case"], options)
    except ExportError as error:
        return str(error)
    return "match"


def make_case(spec: ModelSpec, given_case: Draw) -> Case:
    """The case of a draw."""
    chunks, pads = tuple(given_case["chunks"]), tuple(given_case["pads"])
    tokens = left_padded(spec, seeded_tokens(spec, sum(chunks), 3, batch=len(pads)), pads)
    return Case("fuzz", tokens, chunks, pads, given_case["first"])


def _wrapper(config: Any, given_case: Draw, options: ExportOptions) -> None:
    """The traced module, run eagerly in float64, against transformers in float64."""
    import torch
    from transformers import AutoModelForCausalLM

    from exporter.decoder import ATTENTION, Decoder, register_attention
    from exporter.describe import model_spec
    from exporter.experts import choose_experts, register_experts
    from exporter.rope import hook_tables
    from runners.engines.torch_eager import TorchSession

    register_attention()
    register_experts()
    models = [
        AutoModelForCausalLM.from_config(
            copy.deepcopy(config), attn_implementation=name, experts_implementation="eager", dtype=torch.float32
        ).eval()
        for name in ("eager", ATTENTION)
    ]
    draw_weights(models[0], 0)
    models[1].load_state_dict(models[0].state_dict())
    spec = model_spec(models[1].config, models[1], "float32")
    options = settled(options, spec)
    case = make_case(spec, given_case)
    reference = TorchSession(models[0].double(), spec, bounded=False)
    wanted = reference_arrays(reference, spec, replace(case, chunks=(case.total,), first=PREFILL))
    choose_experts(models[1], PREFILL)
    hook_tables(models[1])
    session = _Eager(Decoder(models[1].double(), spec, options, lift=True).eval(), spec, options)
    wide = replace(options, dtype="float64")  # type: ignore[arg-type]
    player = StaticPlayer(spec, wide, poison=True) if options.layout == "static" else Player(spec, wide)
    for step in case.steps():
        outputs = player.run(session, step, case.inputs(step))
        expected = expected_outputs(wanted, step, spec.slots, bounded=options.bounded)
        for name, array in expected.items():
            _close(name, step.index, array, outputs[name], case, step.start if name == "logits" else None)


class _Eager:
    """A session of the module that is traced."""

    info = RunnerInfo("wrapper", "0", {"dtype": "float64"})

    def __init__(self, decoder: Any, spec: ModelSpec, options: ExportOptions) -> None:
        self._decoder, self._spec, self._options = decoder, spec, options

    def run(self, graph: GraphKind, inputs: Any) -> dict[str, Any]:
        import torch

        given_inputs = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in inputs.items()}
        with torch.no_grad():
            outputs = self._decoder(given_inputs)
        ports = graph_spec(graph, self._spec, self._options).outputs
        return {port.name: output.numpy() for port, output in zip(ports, outputs, strict=True)}

    def close(self) -> None:
        """Nothing to free."""


def _close(name: str, step: int, expected: Any, actual: Any, case: Case, start: int | None) -> None:
    assert expected.shape == actual.shape, f"{name} of step {step}: shape {actual.shape}, expected {expected.shape}"
    assert np.isfinite(actual).all(), f"{name} of step {step}: not finite"
    if start is None:  # a cache: its rows end at the step's end
        stop = int(np.cumsum(case.chunks)[step])
        live = case.mask[:, stop - expected.shape[2] : stop] == 1
        difference = np.abs(np.moveaxis(expected - actual, 2, 1)[live])
    else:
        difference = np.abs((expected - actual)[case.mask[:, start : start + expected.shape[1]] == 1])
    worst = float(difference.max(initial=0.0))
    assert worst <= EXACT * max(1.0, float(np.abs(expected).max(initial=0.0))), f"{name} of step {step}: off by {worst}"


def _graphs(config: Any, given_case: Draw, options: ExportOptions) -> None:
    """The exported graphs: exact in float64, within the budget in ONNX Runtime."""
    from exporter.checkpoint import resolve
    from exporter.export import export
    from runners.judge import JudgeOptions, judge

    with tempfile.TemporaryDirectory(prefix="kvparity-fuzz-") as folder:
        checkpoint = resolve(str(save_checkpoint(config, Path(folder) / "hf")))
        bundle = export(
            checkpoint,
            Path(folder) / "bundle",
            options,
            record=lambda made, _: record_cases(made, [make_case(made.model, given_case)]),
            in_process=True,
        )
        runner = RunnerSpec("ort", {"threads": "1"})
        report = judge(bundle, JudgeOptions((runner,), tol="auto", budget=BUDGET, exact=True))
    first = report.first_divergence
    assert report.verdict == "match", first.sentence if first else report.verdict


@click.command()
@click.option("-n", "count", default=100, show_default=True, help="Draws.")
@click.option("--graphs", default=20, show_default=True, help="Export every so-many-th draw; 0 exports none.")
@click.option("--seed", "start", default=0, show_default=True)
@click.option("--config", help="Repeat one draw, given as JSON.")
def main(count: int, graphs: int, start: int, config: str | None) -> None:
    """Draw, compare, and print a failure as the command that repeats it."""
    import logging

    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    if config:
        click.echo(check(json.loads(config), graphs=graphs > 0))
        return
    seen: dict[str, int] = {}
    failed: list[Draw] = []

    @seed(start)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(draws())
    def run(draw: Draw) -> None:
        made = sum(seen.values())
        try:
            verdict = check(draw, graphs=bool(graphs) and made % graphs == 0)
        except Exception:
            failed[:] = [draw]  # hypothesis runs the smallest one last
            raise
        seen[verdict] = seen.get(verdict, 0) + 1

    try:
        run()
    except Exception as error:
        click.echo(f"{type(error).__name__}: {str(error)[:500]}", err=True)
        click.echo(f"python -m tests.fuzz --config '{json.dumps(failed[0])}'")
        sys.exit(1)
    for verdict, times in sorted(seen.items(), key=lambda item: -item[1]):
        click.echo(f"{times:5d}  {verdict}")


if __name__ == "__main__":
    main()
