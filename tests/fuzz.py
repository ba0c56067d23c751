"""Random small decoders x random cases: each is refused cleanly, or computes exactly what PyTorch computes.

``python -m tests.fuzz -n 200`` draws configurations and cases (:mod:`tests.draws`). Every draw is compared in float64
with the module that is traced (milliseconds), then exported and its graphs compared in float64 (1e-10) and in ONNX
Runtime (the budget), about three seconds. ``--checkpoints`` draws checkpoints as they lie about instead, and compares
plain ONNX Runtime with ``from_pretrained`` (:mod:`tests.fuzz_checkpoints`). The run ends with what it covered; a
failure is shrunk by hypothesis and printed as the command that repeats it. A draw that takes too long is neither pass
nor failure and is counted apart.
"""

from __future__ import annotations

import copy
import gc
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings

from kvparity.exporter.contract.cases import Case, left_padded, seeded_tokens
from kvparity.exporter.contract.errors import ExportError
from kvparity.exporter.contract.ports import graph_spec, resolve_options
from kvparity.exporter.contract.spec import PREFILL, ExportOptions, GraphKind, ModelSpec
from kvparity.exporter.contract.vectors import expected_outputs
from kvparity.runners.base import RunnerInfo, RunnerSpec
from kvparity.runners.decode.layouts.dynamic import Player
from kvparity.runners.decode.layouts.shared import Player as SharedPlayer
from kvparity.runners.decode.layouts.static import Player as StaticPlayer
from kvparity.runners.diff.names import is_state
from kvparity.runners.reference.record import record_cases, reference_arrays
from tests.draws import Draw, checkpoint_draws, draws, state_draws, traits
from tests.families import draw_weights, is_fault, save_checkpoint, small_config
from tests.fuzz_checkpoints import check_checkpoint

EXACT = 1e-10  # relative to the largest value; agreement is at 1e-13
BUDGET = 8.0
SHRINKING = 240.0  # seconds
Check = Callable[[Draw], str]
Draws = Callable[[], Any]


@dataclass(frozen=True)
class Outcome:
    """What became of one draw, and the reason in words."""

    kind: Literal["match", "refused", "failed", "out of time"]
    words: str = ""


class OutOfTime(BaseException):
    """A draw took longer than it may; no Exception, so that nothing that is tried catches it."""


def attempt(draw: Draw, check: Check, limit: float) -> Outcome:
    """Check one draw; ``limit`` is in seconds of this process's own time, so that a busy machine changes nothing."""
    try:
        with _at_most(limit):
            words = check(draw)
    except OutOfTime:
        return Outcome("out of time")
    except Exception as error:
        return Outcome("failed", f"{type(error).__name__}: {error}")
    if words == "match":
        return Outcome("match")
    return Outcome("failed" if is_fault(words) else "refused", words)


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def check(draw: Draw, *, graphs: bool) -> str:
    """Compare one draw; ``"match"``, or the words of a refusal.

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

    from kvparity.exporter.checkpoint.model_spec import model_spec
    from kvparity.exporter.model.attention import ATTENTION, register_attention
    from kvparity.exporter.model.decoder import Decoder
    from kvparity.exporter.model.experts import choose_experts, register_experts
    from kvparity.exporter.model.rope import hook_tables
    from kvparity.runners.engines.torch_eager import TorchSession

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
    options = resolve_options(options, spec)
    case = make_case(spec, given_case)
    reference = TorchSession(models[0].double(), spec)
    if not spec.has_states:  # which are known where calls end
        case = replace(case, chunks=(case.total,), first=PREFILL)
    wanted = reference_arrays(reference, spec, case)
    case = make_case(spec, given_case)
    choose_experts(models[1], PREFILL)
    hook_tables(models[1])
    session = Eager(Decoder(models[1].double(), spec, options, lift=True).eval(), spec, options)
    wide = replace(options, dtype="float64")  # type: ignore[arg-type]
    player = player_of(spec, wide)
    last = options.logits == "last"
    for step in case.steps():
        outputs = player.run(session, step, case.inputs(step))
        expected = expected_outputs(wanted, step, spec.slots, options, last=last)
        for name, array in expected.items():
            start = step.stop - 1 if last else step.start
            _close(name, step.index, array, outputs[name], case, start if name == "logits" else None)


def player_of(spec: ModelSpec, options: ExportOptions) -> Any:
    """What plays a case in a layout; rows that nothing may read are poisoned."""
    if options.layout == "dynamic":
        return Player(spec, options)
    return (StaticPlayer if options.layout == "static" else SharedPlayer)(spec, options, poison=True)


class Eager:
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
    if is_state(name):
        difference = np.abs(expected - actual)
    elif start is None:  # a cache: its rows end at the step's end
        stop = int(np.cumsum(case.chunks)[step])
        live = case.mask[:, stop - expected.shape[2] : stop] == 1
        difference = np.abs(np.moveaxis(expected - actual, 2, 1)[live])
    else:
        difference = np.abs((expected - actual)[case.mask[:, start : start + expected.shape[1]] == 1])
    worst = float(difference.max(initial=0.0))
    assert worst <= EXACT * max(1.0, float(np.abs(expected).max(initial=0.0))), f"{name} of step {step}: off by {worst}"


def _graphs(config: Any, given_case: Draw, options: ExportOptions) -> None:
    """The exported graphs: exact in float64, within the budget in ONNX Runtime."""
    from kvparity.exporter.checkpoint.source import resolve
    from kvparity.exporter.export import export
    from kvparity.runners.compare.judge import JudgeOptions, judge

    with tempfile.TemporaryDirectory(prefix="kvparity-fuzz-") as folder:
        checkpoint = resolve(str(save_checkpoint(config, Path(folder) / "hf")))
        bundle = export(
            checkpoint,
            Path(folder) / "bundle",
            options,
            record=lambda made, _, source: record_cases(made, [make_case(made.model, given_case)], source),
            in_process=True,
        )
        runner = RunnerSpec("ort", {"threads": "1"})
        report = judge(bundle, JudgeOptions((runner,), tol="auto", budget=BUDGET, exact=True))
    first = report.first_divergence
    assert report.verdict == "match", first.sentence if first else report.verdict


def collect(numbers: range, drawn_from: Draws = draws) -> list[Draw]:
    """Draw without checking: each from a seed of its own, since hypothesis makes most examples out of earlier ones."""
    found: list[Draw] = []
    for number in numbers:
        drawn: list[Draw] = []
        _drawn(number, drawn.append, (Phase.generate,), drawn_from)
        found.append(drawn[-1])
    return found


def _drawn(start: int, use: Callable[[Draw], None], phases: tuple[Phase, ...], drawn_from: Draws) -> None:
    @seed(start)
    # The first example is always the simplest one.
    @settings(max_examples=2, deadline=None, database=None, phases=phases, suppress_health_check=list(HealthCheck))
    @given(drawn_from())
    def run(draw: Draw) -> None:
        use(draw)

    run()


def shrunk(number: int, failed: Outcome, tried: Callable[[Draw], Outcome], drawn_from: Draws = draws) -> Draw:
    """The smallest draw that hypothesis finds, within :data:`SHRINKING` seconds, to fail as draw ``number`` does."""
    (smallest,) = collect(range(number, number + 1), drawn_from)
    known, kind = {json.dumps(smallest): failed}, failed.words.partition(":")[0]
    end = time.monotonic() + SHRINKING

    def fail_again(draw: Draw) -> None:
        nonlocal smallest
        key = json.dumps(draw)
        if key not in known:
            if time.monotonic() > end:
                return
            known[key] = tried(draw)
        if known[key].kind == "failed" and known[key].words.partition(":")[0] == kind:
            smallest = draw
            raise AssertionError(kind)

    try:
        _drawn(number, fail_again, (Phase.generate, Phase.shrink), drawn_from)
    except AssertionError:
        pass
    return smallest


def summary(drawn: Sequence[Draw], outcomes: Sequence[Outcome]) -> list[str]:
    """Lines: how many ended how, why some were refused, and which values of every field matched how often."""
    kinds = Counter(outcome.kind for outcome in outcomes)
    parts = [f"{kinds[kind]} {kind}" for kind in ("match", "refused", "failed", "out of time")]
    lines = [f"{len(outcomes)} draws: {', '.join(parts)}"]
    reasons = Counter(outcome.words for outcome in outcomes if outcome.kind == "refused")
    lines += [f"  refused {times}x: {words}" for words, times in reasons.most_common()]
    covered: dict[str, Counter[str]] = {}
    for draw, outcome in zip(drawn, outcomes, strict=False):
        for field, value in traits(draw) if outcome.kind == "match" else ():
            covered.setdefault(field, Counter())[value] += 1
    lines += [""] if covered else []
    for field, values in covered.items():
        lines.append(f"{field + ':':24}" + ", ".join(f"{value} {times}x" for value, times in sorted(values.items())))
    return lines


@click.command()
@click.option("-n", "count", default=100, show_default=True, help="Draws.")
@click.option("--graphs/--no-graphs", default=True, show_default=True, help="Export and judge the graphs too.")
@click.option("--first", default=0, show_default=True, help="Number of the first draw, to run many in pieces.")
@click.option("--limit", default=120.0, show_default=True, help="Seconds of processor time that a draw may take.")
@click.option("--checkpoints", is_flag=True, help="Draw checkpoints as they lie about.")
@click.option("--states", is_flag=True, help="Draw models that keep states.")
@click.option("--config", help="Repeat one draw, given as JSON.")
def main(
    count: int, graphs: bool, first: int, limit: float, checkpoints: bool, states: bool, config: str | None
) -> None:
    """Draw, compare, say what was covered; exit 1 on a failure, 2 where a draw ran out of time."""
    _quiet()

    drawn_from = checkpoint_draws if checkpoints else state_draws if states else draws

    def tried(draw: Draw) -> Outcome:
        return attempt(draw, check_checkpoint if checkpoints else lambda draw: check(draw, graphs=graphs), limit)

    drawn = [json.loads(config)] if config else collect(range(first, first + count), drawn_from)
    outcomes: list[Outcome] = []
    for draw in drawn:
        outcomes.append(tried(draw))
        if len(outcomes) % 8 == 0:
            gc.collect()
        if outcomes[-1].kind in ("failed", "out of time") or len(outcomes) % 20 == 0:
            last = outcomes[-1]
            click.echo(f"{len(outcomes)}/{len(drawn)} {last.kind} {last.words[:500]}", err=True)
        if last_failed := outcomes[-1].kind == "failed":
            break
    else:
        last_failed = False
    click.echo("\n".join(summary(drawn, outcomes)))
    if last_failed:
        worst = drawn[0] if config else shrunk(first + len(outcomes) - 1, outcomes[-1], tried, drawn_from)
        kind = "--checkpoints " if checkpoints else ""
        click.echo(f"python -m tests.fuzz {kind}--config '{json.dumps(worst)}'")
    sys.exit(1 if last_failed else 2 if any(outcome.kind == "out of time" for outcome in outcomes) else 0)


def _quiet() -> None:
    import logging

    import torch
    import transformers

    torch.set_num_threads(1)
    gc.freeze()
    gc.disable()  # tracing makes millions of objects: a seventh of its time went into looking at them
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.disable(logging.WARNING)


if __name__ == "__main__":
    main()
