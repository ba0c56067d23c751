"""Writes text from a bundle's graphs alone: tokenizer.json, a session, and nothing of PyTorch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.errors import BundleError, TraceError
from kvparity.exporter.contract.model_files import end_tokens, open_tokenizer
from kvparity.runners.base import RunnerSpec
from kvparity.runners.decode.decoders import Decoder, open_decoder
from kvparity.runners.decode.draft import Drafts, check_draft, draft_tokens
from kvparity.runners.decode.sampling import Sampling

__all__ = ["Generation", "Sampling", "generate", "generate_tokens"]


@dataclass(frozen=True)
class Generation:
    """What came out: the new text, token ids, why it ended, seconds of prefill and decode, and how drafts went."""

    text: str
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    ended: str
    prefill_seconds: float
    decode_seconds: float
    drafts: Drafts | None = None

    @property
    def tokens_per_second(self) -> float:
        """Decode speed; 0 where nothing was decoded."""
        steps = len(self.tokens) - 1
        return steps / self.decode_seconds if steps > 0 and self.decode_seconds > 0 else 0.0


def load_tokenizer(bundle: Bundle) -> Any:
    """The bundle's ``tokenizers.Tokenizer``.

    Raises:
        BundleError: The bundle has none.
    """
    path = Path(bundle.root) / "tokenizer.json"
    if not path.is_file():
        raise BundleError(
            f"{bundle.root}: has no tokenizer.json, so text can't be written; put the tokenizer's files beside the "
            "checkpoint and export again: where they cannot be converted, export says why"
        )
    return open_tokenizer(path)


def generate_tokens(
    bundle: Bundle,
    decoder: Decoder,
    prompt: npt.NDArray[np.int64],
    count: int,
    sampling: Sampling,
    draft: int = 0,
    drafts: Drafts | None = None,
) -> Iterator[int]:
    """Yield up to ``count`` tokens after a prompt of shape (sequence,); stops after the end token.

    With ``draft`` they come of greedy speculative decoding, and ``drafts`` is told how that went.

    Raises:
        TraceError: The prompt is empty, longer than the model's positions or the static layout's buffers, or has
            tokens that the model does not know.
    """
    model = bundle.model
    if not 0 < len(prompt) < model.max_position:
        raise TraceError(f"the prompt has {len(prompt)} tokens, expected 1 to {model.max_position - 1}")
    if prompt.max() >= model.vocab_size:
        raise TraceError(
            f"the prompt has token {prompt.max()}, and the model knows {model.vocab_size}: its tokenizer.json is "
            "another model's, or had tokens added; put the model's own beside the checkpoint and export again"
        )
    random = np.random.default_rng(sampling.seed)
    text = ids = prompt
    switch = model.rope_switch if model.rope_restart else None
    ends, room = end_tokens(bundle), bundle.options.max_len or model.max_position
    count = min(count, room - len(prompt))
    if draft:
        for token in draft_tokens(decoder, prompt, count, draft, room, drafts or Drafts()):
            yield token
            if token in ends:
                return
        return
    for _ in range(count):
        token = choose(decoder.feed(ids).astype(np.float64), sampling, random)
        yield token
        if token in ends:
            return
        ids = np.asarray([token], np.int64)
        text = np.append(text, ids)
        if switch is not None and len(text) == switch + 1:  # rows of the cache have the frequencies of short texts
            decoder.reset()
            ids = text


def choose(logits: npt.NDArray[np.float64], sampling: Sampling, random: np.random.Generator) -> int:
    """Choose a token from logits of shape (vocab,)."""
    if sampling.temperature <= 0:
        return int(np.argmax(logits))
    order = np.argsort(-logits, kind="stable")
    if sampling.top_k > 0:
        order = order[: sampling.top_k]
    weights = np.exp((logits[order] - logits[order[0]]) / sampling.temperature)
    weights /= weights.sum()
    keep = int(np.searchsorted(np.cumsum(weights), sampling.top_p)) + 1
    weights = weights[:keep] / weights[:keep].sum()
    return int(random.choice(order[:keep], p=weights))


def generate(
    bundle: Bundle,
    prompt: str,
    count: int,
    *,
    runner: RunnerSpec,
    sampling: Sampling,
    chat: bool = False,
    draft: int = 0,
    on_text: Callable[[str], None] = lambda text: None,
) -> Generation:
    """Continue a prompt, or with ``chat`` answer it as a message in the model's chat template.

    Args:
        bundle: The bundle.
        prompt: Text.
        count: Most new tokens.
        runner: Which engine runs the graphs.
        sampling: How tokens are chosen.
        chat: Put the prompt into the chat template first.
        draft: Most tokens that are drafted for a call; 0 for none.
        on_text: Gets the text piece by piece as it is decoded.
    """
    from tokenizers.decoders import DecodeStream

    from kvparity.runners.decode.chat import chat_prompt

    drafts = Drafts() if draft else None
    if draft:
        check_draft(bundle, sampling)
    tokenizer = load_tokenizer(bundle)
    text = chat_prompt(bundle.root, prompt) if chat else prompt
    ids = np.asarray(tokenizer.encode(text, add_special_tokens=not chat).ids, np.int64)
    decoder = open_decoder(bundle, runner)
    stream = DecodeStream(ids=[int(token) for token in ids], skip_special_tokens=True)
    tokens: list[int] = []
    pieces: list[str] = []
    started = time.perf_counter()
    first = started
    try:
        for token in generate_tokens(bundle, decoder, ids, count, sampling, draft, drafts):
            first = time.perf_counter() if not tokens else first
            tokens.append(token)
            piece = stream.step(tokenizer, token)
            if piece:
                pieces.append(piece)
                on_text(piece)
        ended = time.perf_counter()
    finally:
        decoder.close()
    if tokens and tokens[-1] in end_tokens(bundle):
        reason = "end of text"
    else:
        reason = "token limit" if len(tokens) == count else f"position limit {bundle.model.max_position}"
    prompt_ids = tuple(int(token) for token in ids)
    return Generation("".join(pieces), prompt_ids, tuple(tokens), reason, first - started, ended - first, drafts)
