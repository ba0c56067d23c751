"""The bound decoder gives what the played one gives: across the window, in chunks, after a reset."""

from __future__ import annotations

import numpy as np
import pytest

from exporter.bundle import Bundle
from runners.base import RunnerSpec, load_engine
from runners.decoders import Decoder, PlayedDecoder, open_decoder

ONE_THREAD = {"threads": "1"}
CHUNKS = ([5] + [1] * 140, [120, 1, 1, 1, 7, 1, 1, 1, 1, 30, 1, 1], [300, 1, 200, 1, 1])


def logits(decoder: Decoder, chunks: list[int], ids: np.ndarray) -> list[np.ndarray]:
    decoder.reset()
    ends = np.cumsum(chunks)
    return [decoder.feed(ids[end - count : end]).copy() for end, count in zip(ends, chunks, strict=True)]


@pytest.mark.parametrize("chunks", CHUNKS, ids=("steps", "window", "growth"))
def test_bound_buffers_change_nothing(tiny_bundle: Bundle, chunks: list[int]) -> None:
    bound = open_decoder(tiny_bundle, RunnerSpec("ort", ONE_THREAD))
    played = PlayedDecoder(tiny_bundle, load_engine("ort").open_session(tiny_bundle, ONE_THREAD))
    ids = np.random.default_rng(0).integers(3, tiny_bundle.model.vocab_size, sum(chunks))
    expected = logits(played, chunks, ids)
    for _ in range(2):
        for actual, wanted in zip(logits(bound, chunks, ids), expected, strict=True):
            assert np.abs(actual - wanted).max() < 1e-6
    ids[0] += 1
    assert np.abs(logits(bound, chunks, ids)[0] - expected[0]).max() > 1e-3
