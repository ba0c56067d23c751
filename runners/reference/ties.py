"""Near ties of routing: tokens whose choice of experts rounding may turn, found and drawn anew.

A router takes the k experts of the highest scores. Where the k-th and the next are closer than rounding moves them, two
right programs take different ones, and every later value differs as if one of them were wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from kvparity.exporter.contract.cases import Case, IntArray, master_of, masters, seeded_tokens
from kvparity.exporter.contract.spec import ModelSpec

__all__ = ["Choices", "draw_anew", "near_ties", "watch_choices"]

_MOVED = 4  # times PyTorch's own error of a token's scores that their order must survive
_ROUNDS = 60  # of drawing anew

Scores = npt.NDArray[np.float64]


@dataclass
class Choices:
    """What ``torch.topk`` chose from while a sequence was computed.

    Attributes:
        calls: (how many, scores (tokens, candidates)) in order.
    """

    calls: list[tuple[int, Scores]] = field(default_factory=list)

    def by_token(self, total: int) -> list[tuple[int, Scores]]:
        """The same with the calls of a sequence put together, choices that have a row per token alone."""
        sizes = [len(scores) for _, scores in self.calls]
        each = next((n for n in range(1, len(sizes) + 1) if sum(sizes[::n]) == total and len(sizes) % n == 0), 0)
        parts = [self.calls[index::each] for index in range(each)]
        same = [part for part in parts if len({(k, scores.shape[1]) for k, scores in part}) == 1]
        return [(part[0][0], np.concatenate([scores for _, scores in part])) for part in same]


@contextmanager
def watch_choices() -> Iterator[Choices]:
    """Note what ``torch.topk`` chooses from."""
    import torch
    from torch.overrides import TorchFunctionMode

    found = Choices()

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in (torch.topk, torch.Tensor.topk):
                scores, kwargs = args[0], kwargs or {}
                k = kwargs["k"] if "k" in kwargs else args[1]
                if scores.is_floating_point() and scores.shape[-1] > k:
                    found.calls.append((int(k), scores.detach().double().flatten(0, -2).numpy()))
            return func(*args, **(kwargs or {}))

    with Watch():
        yield found


def near_ties(total: int, single: Choices, wide: Choices) -> IntArray:
    """Tokens of a sequence whose choice lies within rounding.

    Args:
        total: Tokens of the sequence.
        single: Scores in the bundle's dtype.
        wide: The same in float64.

    Returns:
        Their positions, in order.
    """
    near = np.zeros(total, np.bool_)
    for (k, own), (_, exact) in zip(single.by_token(total), wide.by_token(total), strict=False):
        if own.shape != exact.shape:
            continue
        ordered = -np.sort(-exact, axis=1)
        with np.errstate(invalid="ignore"):  # masked scores are infinite
            moved = np.nan_to_num(np.abs(own - exact), nan=0.0).max(axis=1)
            near |= ordered[:, k - 1] - ordered[:, k] <= _MOVED * moved
    return np.flatnonzero(near)


def draw_anew(
    spec: ModelSpec, cases: Sequence[Case], ties: Callable[[IntArray], IntArray], rounds: int = _ROUNDS
) -> tuple[Case, ...]:
    """The cases with other tokens in the place of near ties, as far as their tokens are random.

    A token's choice depends on the tokens before it, so that a round settles the first near tie of each sequence.

    Args:
        spec: The model.
        cases: Cuts of a few sequences.
        ties: Gives the near ties of a sequence of tokens.
        rounds: After which the rest is left as it is.
    """
    made = list(cases)
    random, settled = seeded_tokens(spec, rounds, seed=4)[0], set[bytes]()
    for number in range(1, rounds):
        known = masters([case for case in made if case.drawn])
        near = set[bytes]()  # what sequences begin with up to such a token: several may begin alike
        for tokens in known.values():
            found = ties(tokens) if tokens.tobytes() not in settled else tokens[:0]
            found = found[found > 0] if spec.bos_token_id is not None else found
            near |= {tokens[: place + 1].tobytes() for place in found}
            settled |= {tokens.tobytes()} if not len(found) else set()
        if not near:
            break
        moved = {name: tokens.copy() for name, tokens in known.items()}
        for name, tokens in known.items():
            places = [place for place in range(len(tokens)) if tokens[: place + 1].tobytes() in near]
            moved[name][places] = (tokens[places] + random[number] + 1) % spec.vocab_size
        made = [_with(case, known, moved) if case.drawn else case for case in made]
    return tuple(made)


def _with(case: Case, known: Mapping[str, IntArray], moved: Mapping[str, IntArray]) -> Case:
    """A case whose rows begin the moved sequences where they began the known ones."""
    tokens = case.tokens.copy()
    for row, pad in enumerate(case.pads):
        name = master_of(case.row(row), known)
        assert name is not None
        tokens[row, pad:] = moved[name][: case.total - pad]
    return replace(case, tokens=tokens)
