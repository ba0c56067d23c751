"""Greedy speculative decoding with a prompt-lookup drafter: tokens that followed the same n-gram earlier in the text.

The model checks a whole draft in one call: the tokens that it would have chosen itself are kept, the others are taken
back from the caches, so that the text is the one of plain greedy decoding. Leviathan et al. 2023, arXiv:2211.17192;
the drafter is transformers' ``prompt_lookup_num_tokens``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.errors import BundleError
from kvparity.runners.decode.decoders import Decoder
from kvparity.runners.decode.sampling import Sampling

__all__ = ["Drafts", "check_draft", "draft_tokens"]

_NGRAMS = (3, 2)  # tokens that have to be the same, most first


@dataclass
class Drafts:
    """How drafts went: tokens drafted and accepted, and calls after the prompt's."""

    drafted: int = 0
    accepted: int = 0
    calls: int = 0


class _Lookup:
    """A text, and where each n-gram in it was last followed by something."""

    def __init__(self) -> None:
        self.text: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}

    def add(self, token: int) -> None:
        """Append a token: what came before it is now followed by it."""
        for size in _NGRAMS:
            if len(self.text) >= size:
                self._after[tuple(self.text[-size:])] = len(self.text)
        self.text.append(token)

    def draft(self, count: int) -> list[int]:
        """Up to ``count`` tokens that followed the text's last n-gram before."""
        for size in _NGRAMS:
            place = self._after.get(tuple(self.text[-size:]))
            if place is not None:
                return self.text[place : place + count]
        return []


def check_draft(bundle: Bundle, sampling: Sampling) -> None:
    """Refuse what cannot be drafted for.

    Raises:
        BundleError: Says why, and what to do.
    """
    if sampling.temperature > 0:
        raise BundleError("--draft is greedy decoding; leave out --temperature")
    if bundle.options.logits == "last":
        raise BundleError(
            f"{bundle.root}: returns the last position's logits alone, and a draft needs all; export again"
        )
    if bundle.model.rope_switch is not None:
        raise BundleError(f"{bundle.root}: its rotary frequencies depend on how calls are cut; leave out --draft")


def draft_tokens(
    decoder: Decoder, prompt: npt.NDArray[np.int64], count: int, draft: int, room: int, drafts: Drafts
) -> Iterator[int]:
    """Yield up to ``count`` greedy tokens after a prompt of shape (sequence,).

    Args:
        decoder: A new conversation.
        prompt: At least one token.
        count: Most tokens.
        draft: Most tokens of a draft.
        room: Slots that a conversation may have.
        drafts: Is told how drafts went.
    """
    lookup = _Lookup()
    for token in prompt.tolist():
        lookup.add(token)
    fresh, guess, seen = prompt.tolist(), list[int](), 0
    while count > 0:
        ids = np.asarray([*fresh, *guess], np.int64)
        chosen = decoder.feed_all(ids)[len(fresh) - 1 :].argmax(axis=1).tolist()
        kept = next((index for index, token in enumerate(guess) if token != chosen[index]), len(guess))
        seen += len(ids)
        drafts.drafted += len(guess)
        drafts.accepted += kept
        for token in chosen[: min(kept + 1, count)]:
            lookup.add(token)
            yield token
        count -= kept + 1
        again = decoder.back(len(guess) - kept) if kept < len(guess) else 0
        seen -= len(guess) - kept + again
        fresh = [*ids[len(ids) - (len(guess) - kept) - again : len(ids) - (len(guess) - kept)].tolist(), chosen[kept]]
        guess = lookup.draft(max(min(draft, count - 1, room - seen - len(fresh)), 0))
        drafts.calls += 1
