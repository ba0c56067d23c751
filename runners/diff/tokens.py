"""Where candidate and reference would choose different tokens, and whether rounding explains it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from kvparity.runners.diff.metrics import TOP_K, Floats
from kvparity.runners.diff.records import TokenChoice, TopDifference, number
from kvparity.runners.diff.tensor import Array, Expectation

__all__ = ["flips"]


def flips(
    actual: Array, expectation: Expectation, flipped: npt.NDArray[np.bool_], step: int
) -> Iterator[TopDifference]:
    """Live positions where the likeliest token differs, in slot order.

    A flip is a near tie when the reference rates both tokens within twice the limit of each other: an error within
    the limit on either of them is then enough to swap them. It is counted and shown all the same.

    Args:
        actual: (batch, rows, vocab) logits of the candidate, of the expected shape.
        expectation: What they must be.
        flipped: (batch, rows): where it differs.
        step: Number of the call.
    """
    batches, rows = np.nonzero(flipped)
    for batch, row in sorted(zip(batches.tolist(), rows.tolist(), strict=True), key=lambda pair: (pair[1], pair[0])):
        reference = _reference(expectation, batch, row)
        candidate = actual[batch, row].astype(np.float64)
        chosen, other = int(reference.argmax()), int(candidate.argmax())
        gap = float(reference[chosen] - reference[other])
        yield TopDifference(
            step=step,
            batch=batch,
            position=expectation.first + row,
            gap=gap,
            near_tie=gap <= 2 * expectation.limit,
            choices=_choices(reference, candidate),
        )


def _reference(expectation: Expectation, batch: int, row: int) -> Floats:
    values: Floats = expectation.values[batch, row].astype(np.float64)
    if expectation.float64 and expectation.delta is not None:
        values = values + expectation.delta[batch, row]
    return values


def _choices(reference: Floats, candidate: Floats) -> tuple[TokenChoice, ...]:
    """The likeliest tokens of either side, by the reference's rating; ties by number."""
    best = {int(token) for side in (reference, candidate) for token in np.argsort(-side, kind="stable")[:TOP_K]}
    ranked = sorted(best, key=lambda token: (-reference[token], token))
    return tuple(
        TokenChoice(token, number(float(reference[token])), number(float(candidate[token]))) for token in ranked
    )
