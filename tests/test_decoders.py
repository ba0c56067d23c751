"""The bound decoder gives what the played one gives: across the window, in chunks, after a reset."""

from __future__ import annotations

import numpy as np
import pytest

from kvparity.exporter.contract.bundle import Bundle
from kvparity.runners.base import RunnerSpec, load_engine
from kvparity.runners.decode.decoders import Decoder, PlayedDecoder, open_decoder

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


@pytest.fixture(scope="module")
def shared_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The shipped checkpoint in the shared layout, last logits only."""
    pytest.importorskip("torch", reason="the exporter's extra is not installed")
    from kvparity.exporter.checkpoint.source import resolve
    from kvparity.exporter.contract.spec import ExportOptions
    from kvparity.exporter.export import export
    from tests.conftest import TINY

    target = tmp_path_factory.mktemp("shared") / "bundle"
    return export(resolve(str(TINY)), target, ExportOptions(layout="shared", profile="ort", logits="last"))


@pytest.mark.parametrize("chunks", CHUNKS, ids=("steps", "window", "growth"))
def test_one_buffer_gives_what_growing_caches_give(
    tiny_bundle: Bundle, shared_bundle: Bundle, chunks: list[int]
) -> None:
    bound = open_decoder(shared_bundle, RunnerSpec("ort", ONE_THREAD))
    growing = open_decoder(tiny_bundle, RunnerSpec("ort", ONE_THREAD))
    ids = np.random.default_rng(0).integers(3, tiny_bundle.model.vocab_size, sum(chunks))
    expected = logits(growing, chunks, ids)
    for _ in range(2):
        for actual, wanted in zip(logits(bound, chunks, ids), expected, strict=True):
            assert np.abs(actual - wanted).max() < 1e-4
    ids[0] += 1
    assert np.abs(logits(bound, chunks, ids)[0] - expected[0]).max() > 1e-3


def test_a_short_conversation_does_not_pay_for_the_long_one_before(shared_bundle: Bundle) -> None:
    """Attention looks at every row of a buffer, so the buffers of 900 tokens must not stay for the next 5."""
    decoder = open_decoder(shared_bundle, RunnerSpec("ort", ONE_THREAD))
    ids = np.random.default_rng(3).integers(3, shared_bundle.model.vocab_size, 901)
    logits(decoder, [900, 1], ids)
    assert decoder._mask.shape[1] > 900  # type: ignore[attr-defined]
    logits(decoder, [5, 1], ids)
    assert decoder._mask.shape[1] <= 256  # type: ignore[attr-defined]


def test_one_graph_in_memory_at_a_time_changes_nothing(shared_bundle: Bundle) -> None:
    chunks = [120, 1, 1, 7, 1, 300, 1]
    ids = np.random.default_rng(2).integers(3, shared_bundle.model.vocab_size, sum(chunks))
    low = open_decoder(shared_bundle, RunnerSpec("ort", {**ONE_THREAD, "memory": "low"}))
    expected = logits(open_decoder(shared_bundle, RunnerSpec("ort", ONE_THREAD)), chunks, ids)
    for actual, wanted in zip(logits(low, chunks, ids), expected, strict=True):
        assert np.array_equal(actual, wanted)
    assert len(low._session._sessions) == 1  # type: ignore[attr-defined]
    ids[0] += 1
    assert np.abs(logits(low, chunks, ids)[-1] - expected[-1]).max() > 1e-3


def test_texts_of_different_lengths_share_a_batch(shared_bundle: Bundle) -> None:
    """``past_lengths`` is by row: two texts at 40 and 200 tokens, decoded in one call, give what each gives alone."""
    from kvparity.exporter.contract.spec import DECODE, PREFILL, past_name, present_name

    model, session = shared_bundle.model, load_engine("ort").open_session(shared_bundle, ONE_THREAD)
    ids, capacity = np.random.default_rng(1).integers(3, model.vocab_size, 201), 256
    alone: list[np.ndarray] = []
    buffers: list[dict[str, np.ndarray]] = []
    feeds: list[dict[str, np.ndarray]] = []
    for total in (40, 200):
        caches = {
            past_name(s.slot, part): np.zeros((1, s.kv_heads, s.window or capacity, s.dim(part)), np.float32)
            for s, part in model.cache_names()
        }
        live = (np.arange(capacity) < total).astype(np.int64)[None]
        start = np.zeros(1, np.int64)
        prompt = {"input_ids": ids[None, :total], "position_ids": np.arange(total)[None], "past_lengths": start}
        out = session.run(PREFILL, {**prompt, "attention_mask": live, **caches})
        written = {name: out[name.replace("past_key_values", "present")] for name in caches}
        live = (np.arange(capacity) <= total).astype(np.int64)[None]
        step = {"input_ids": ids[None, -1:], "position_ids": np.full((1, 1), total), "attention_mask": live}
        step["past_lengths"] = np.full(1, total)
        buffers.append({name: array.copy() for name, array in written.items()})
        feeds.append(step)
        alone.append(session.run(DECODE, {**step, **written})["logits"][0, -1].copy())
    together = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
    joined = {name: np.concatenate([rows[name] for rows in buffers]) for name in buffers[0]}
    both = session.run(DECODE, {**together, **joined})
    assert present_name(0, "key") in both
    for row, expected in enumerate(alone):
        assert np.abs(both["logits"][row, -1] - expected).max() < 1e-5
    assert np.abs(alone[0] - alone[1]).max() > 1e-2
