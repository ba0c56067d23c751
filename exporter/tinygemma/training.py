"""Trains the tiny checkpoint from nothing: stories, tokenizer, model, curve, card. Deterministic for a given machine.

One pass over freshly generated stories, packed into blocks as the card does (32 × 256 tokens a step). Every fourth step
uses the same number of tokens as 8 × 1,024 instead, so that all positions up to `max_position_embeddings` are
seen in training, and rows are longer than the window of 128.
"""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch.nn import functional
from transformers import Gemma4ForCausalLM

from kvparity.exporter.contract.errors import ExportError
from kvparity.exporter.tinygemma.card import write_card
from kvparity.exporter.tinygemma.checkpoint import LossPoint, replacing, require_plotting, save_curve, save_hf
from kvparity.exporter.tinygemma.config import EOS_ID, LAYER_SCALARS, check_parameters, tiny_config
from kvparity.exporter.tinygemma.corpus import stories
from kvparity.exporter.tinygemma.options import TrainOptions
from kvparity.exporter.tinygemma.tokenizer import train_tokenizer, wrap_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tokenizers import Tokenizer

__all__ = ["StepInfo", "TrainResult", "train"]

_HELD_OUT_SEED = 1_000_003


@dataclass(frozen=True)
class StepInfo:
    """One finished step: its number from 1, of how many, the loss in nats per token, the learning rate."""

    step: int
    steps: int
    loss: float
    rate: float


@dataclass(frozen=True)
class TrainResult:
    """What training gave.

    Attributes:
        checkpoint: The `hf` folder, for `from_pretrained`.
        final_loss: Mean training loss of the last 50 steps, nats per token.
        held_out_loss: Loss on stories of another seed, in rows of `block` tokens.
        sample: Greedy continuation of "Once upon" by 80 tokens.
        seconds: Wall time.
    """

    checkpoint: Path
    final_loss: float
    held_out_loss: float
    sample: str
    seconds: float


def train(
    out: Path, options: TrainOptions | None = None, on_step: Callable[[StepInfo], None] | None = None
) -> TrainResult:
    """Trains the tiny Gemma 4 and writes `hf/`, `loss.csv`, `loss.png` and `README.md` into `out`.

    Nothing in `out` changes until everything is ready; a failure, also one raised by `on_step`, leaves it as it was.

    Args:
        out: Folder of the checkpoint, created if missing; entries of other names are kept.
        options: Sizes, seed and schedule.
        on_step: Called after every step, for a progress bar.

    Returns:
        Where the checkpoint is and how good it is.
    """
    options = options or TrainOptions()
    started = time.perf_counter()
    require_plotting()
    with replacing(out) as folder, _deterministic(options):
        tokenizer = train_tokenizer(islice(stories(options.seed), options.tokenizer_stories))
        model = _new_model()
        curve = _fit(model, _batches(tokenizer, options), options, on_step)
        final_loss = math.fsum(loss for _, _, loss in curve[-50:]) / len(curve[-50:])
        held_out_loss = _evaluate(model, tokenizer, options)
        fast = wrap_tokenizer(tokenizer)
        inputs = fast("Once upon", return_tensors="pt")
        sample = fast.decode(model.generate(**inputs, max_new_tokens=80, do_sample=False)[0], skip_special_tokens=True)
        save_hf(folder / "hf", model, fast)
        save_curve(folder, curve)
        write_card(folder / "README.md", options, final_loss, held_out_loss, sample)
    return TrainResult(out / "hf", final_loss, held_out_loss, sample, time.perf_counter() - started)


@contextmanager
def _deterministic(options: TrainOptions) -> Iterator[None]:
    """Fixed seed, fixed thread count, deterministic kernels; the caller's settings come back afterwards."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        torch.set_num_threads(options.threads)
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(strict)
            torch.set_num_threads(threads)


def _new_model() -> Gemma4ForCausalLM:
    """A fresh model in training mode with the fixed layer scalars.

    Query and key norms start at head_dim ** -0.25: Gemma 4 does not scale its attention scores, so that norms of one
    would start with scores of deviation sqrt(32), far into the softmax's saturation.
    """
    model = Gemma4ForCausalLM(tiny_config())
    check_parameters(model)
    with torch.no_grad():
        for layer, scalar in zip(model.model.layers, LAYER_SCALARS, strict=True):
            layer.layer_scalar.fill_(scalar)
            layer.self_attn.q_norm.weight.fill_(layer.self_attn.head_dim**-0.25)
            layer.self_attn.k_norm.weight.fill_(layer.self_attn.head_dim**-0.25)
    return model.train()


def _token_stream(tokenizer: Tokenizer, seed: int) -> Iterator[int]:
    """Endless `<bos> story <eos> <bos> story <eos> ...`."""
    source = stories(seed)
    while True:
        for encoding in tokenizer.encode_batch_fast(list(islice(source, 256))):
            yield from encoding.ids
            yield EOS_ID


def _batches(tokenizer: Tokenizer, options: TrainOptions) -> Iterator[torch.Tensor]:
    """One int64 (rows, tokens) tensor per step, cut from a single stream: no token is seen twice."""
    stream = _token_stream(tokenizer, options.seed)
    for step in range(1, options.steps + 1):
        long = options.long_every and step % options.long_every == 0
        width = options.long_block if long else options.block
        yield torch.tensor(list(islice(stream, options.batch * options.block))).view(-1, width)


def _loss(model: Gemma4ForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Mean next-token cross-entropy in nats over an int64 (rows, tokens) batch."""
    logits = model(input_ids=ids, use_cache=False).logits
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def _rate(step: int, options: TrainOptions) -> float:
    """Learning rate of a step, counted from 1: linear warm-up, then a cosine down to a hundredth of the peak."""
    if step <= options.warmup:
        return options.peak_rate * step / options.warmup
    done = (step - options.warmup) / max(1, options.steps - options.warmup)
    return options.peak_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def _optimizer(model: Gemma4ForCausalLM, options: TrainOptions) -> torch.optim.AdamW:
    """AdamW with decay on matrices only, embeddings and norms left out."""
    named = list(model.named_parameters())
    decayed = [weight for name, weight in named if weight.ndim == 2 and "embed_tokens" not in name]
    others = [weight for name, weight in named if weight.ndim != 2 or "embed_tokens" in name]
    groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=options.peak_rate, betas=(0.9, 0.95), fused=True)


def _fit(
    model: Gemma4ForCausalLM,
    batches: Iterator[torch.Tensor],
    options: TrainOptions,
    on_step: Callable[[StepInfo], None] | None,
) -> list[LossPoint]:
    """Runs the optimizer over the batches; returns the curve. The model is in eval mode afterwards."""
    optimizer = _optimizer(model, options)
    curve: list[LossPoint] = []
    for step, ids in enumerate(batches, start=1):
        rate = _rate(step, options)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = _loss(model, ids)
        if not torch.isfinite(loss):
            raise ExportError(f"train: the loss of step {step} is {loss.item()}: lower peak_rate ({options.peak_rate})")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        curve.append((step, rate, loss.item()))
        if on_step:
            on_step(StepInfo(step, options.steps, loss.item(), rate))
    model.eval()
    return curve


def _evaluate(model: Gemma4ForCausalLM, tokenizer: Tokenizer, options: TrainOptions) -> float:
    """Loss on one batch of stories that training has not seen."""
    ids = list(islice(_token_stream(tokenizer, options.seed + _HELD_OUT_SEED), options.batch * options.block))
    with torch.no_grad():
        return float(_loss(model, torch.tensor(ids).view(options.batch, options.block)))
