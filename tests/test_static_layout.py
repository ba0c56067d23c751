"""The static layout gives what the dynamic one gives, whatever unused rows hold, for every chunk, window and batch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.cases import Case, seeded_tokens
from kvparity.exporter.contract.errors import ExportError, TraceError
from kvparity.exporter.contract.ports import graph_spec, resolve_options
from kvparity.exporter.contract.schedule import default_cases
from kvparity.exporter.contract.spec import DECODE, PREFILL, ExportOptions, present_name
from kvparity.exporter.model.layouts.base import open_cache
from kvparity.runners.decode.play import play
from tests.synthetic import MODEL, WINDOW, Decoder, make_bundle

MAX_LEN = 40


class StaticDecoder(Decoder):
    """The numpy decoder behind the static layout's ports, with the exporter's own cache and masks."""

    def run(self, graph: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        spec = graph_spec(graph, self.model, self.options)  # type: ignore[arg-type]
        for port in spec.inputs:
            assert inputs[port.name].shape == port.shape, port
        ids, positions = inputs["input_ids"], inputs["position_ids"]
        steps = 0.3 * np.sin(positions[..., None] * np.arange(1, self.model.hidden_size + 1))
        hidden = np.tanh(self._embed[ids] + steps).astype(self.dtype)
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in inputs.items()}
        cache = open_cache(self.model, self.options, tensors, torch.float32)
        masks, contexts = cache.masks(), []
        for slot in self.model.slots:
            fresh = [
                torch.from_numpy(np.einsum("bsh,hkd->bksd", hidden, self._project[slot.slot, part].astype(self.dtype)))
                for part in ("key", "value")
            ]
            key, value = cache.update(*fresh, slot.layer)
            weights = torch.softmax(key.sum(-1)[:, :, None, :] + masks[slot.layer], -1)
            contexts.append(torch.einsum("bkqr,bkrd->bqkd", weights, value).flatten(2).numpy())
        logits = np.concatenate(contexts, axis=-1) @ self._head.astype(self.dtype)
        last = cache.keep_logits
        outputs = {"logits": logits if isinstance(last, int) else logits[:, last.numpy()]}
        for slot, part in self.model.cache_names():
            outputs[present_name(slot.slot, part)] = cache.present[slot.slot, part].numpy()
        return self.edit(graph, outputs) if self.edit else outputs


def static(**given: Any) -> ExportOptions:
    return resolve_options(ExportOptions(layout="static", **{"max_len": MAX_LEN, "chunk": 4, **given}), MODEL)


def worst(bundle: Bundle, session: Decoder, case: Case, *, poison: bool = False) -> float:
    """Largest difference from the dynamic layout over live slots; inf for NaN."""
    plain = Decoder(options=make_dynamic(bundle).options)
    dynamic = make_dynamic(bundle)
    live, found = case.mask == 1, 0.0
    pairs = zip(play(bundle, session, case, poison=poison), play(dynamic, plain, case), strict=True)
    for mine, theirs in pairs:
        for name, expected in theirs.outputs.items():
            actual, axis = mine.outputs[name], 1 if name == "logits" else 2
            assert actual.shape == expected.shape, name
            seen = live[mine.step.which, mine.step.stop - actual.shape[axis] : mine.step.stop]
            delta = np.abs(np.moveaxis(np.subtract(actual, expected, dtype=np.float64), axis, 1)[seen])
            found = max(found, float(np.nan_to_num(delta, nan=np.inf).max(initial=0.0)))
    return found


def make_dynamic(bundle: Bundle) -> Bundle:
    from dataclasses import replace

    given = bundle.options
    options = ExportOptions(sliding_cache=given.sliding_cache, logits=given.logits, rewind=given.rewind)
    return Bundle(bundle.root, replace(bundle.manifest, options=options))


def opened(tmp_path: Path, options: ExportOptions) -> Bundle:
    return make_bundle(tmp_path / "b", options=options, cases=())


CASES = default_cases(MODEL, limit=MAX_LEN)


@pytest.mark.parametrize("profile", ["portable", "modern"])
@pytest.mark.parametrize("chunk", [1, 3, WINDOW - 1, WINDOW, WINDOW + 1, 17, MAX_LEN])
def test_every_case_gives_the_dynamic_layouts_numbers_at_every_chunk(tmp_path: Path, chunk: int, profile: str) -> None:
    options = static(chunk=chunk, profile=profile)
    bundle = opened(tmp_path, options)
    found = {case.name: worst(bundle, StaticDecoder(options=options), case, poison=chunk != 3) for case in CASES}
    assert max(found.values()) < 1e-5, found


@pytest.mark.parametrize(
    "given",
    [
        {"batch": 2},
        {"batch": 5},
        {"sliding_cache": "full"},
        {"logits": "last"},
        {"max_len": WINDOW},
        {"max_len": 4},
        {"rewind": 4},
        {"rewind": 2, "batch": 2},
    ],
)
def test_batch_full_caches_last_logits_small_buffers_and_rewind_change_nothing(
    tmp_path: Path, given: dict[str, Any]
) -> None:
    options = static(**given)
    bundle, session = opened(tmp_path, options), StaticDecoder(options=options)
    cases = default_cases(MODEL, limit=MAX_LEN, options=options) if options.rewind else CASES
    fitting = [case for case in cases if case.total <= (options.max_len or 0)]
    assert fitting
    assert max(worst(bundle, session, case, poison=True) for case in fitting) < 1e-5


@pytest.mark.parametrize("graph", [PREFILL, DECODE])
def test_a_row_that_the_graph_reads_and_should_not_is_found(tmp_path: Path, graph: str) -> None:
    """Twin of the tests above: one wrong row of one ring."""
    options = static()

    def shift(kind: str, outputs: dict[str, Any]) -> dict[str, Any]:
        name = present_name(0, "key")
        return {**outputs, name: np.roll(outputs[name], 1, axis=2)} if kind == graph else outputs

    bundle = opened(tmp_path, options)
    case = next(case for case in CASES if case.name == "decode-across")
    assert worst(bundle, StaticDecoder(options=options, edit=shift), case) > 1e-3


def test_poison_reaches_the_result_where_unused_rows_are_not_replaced(tmp_path: Path) -> None:
    """Twin: the same decoder reading its buffers as they are."""

    class Careless(StaticDecoder):
        def run(self, graph: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
            outputs = super().run(graph, inputs)
            name = present_name(1, "value")
            unread = inputs["past_key_values.1.value"] * 0
            return {**outputs, name: outputs[name] + unread}

    options = static()
    bundle, case = opened(tmp_path, options), CASES[3]
    assert worst(bundle, Careless(options=options), case) < 1e-5
    assert worst(bundle, Careless(options=options), case, poison=True) == np.inf


def test_ports_have_numbers_only_and_rings_of_exactly_the_window() -> None:
    options = static(batch=3)
    for kind in (PREFILL, DECODE):
        spec = graph_spec(kind, MODEL, options)
        assert all(isinstance(dim, int) for port in (*spec.inputs, *spec.outputs) for dim in port.shape)
        shapes = {port.name: port.shape for port in spec.inputs}
        assert shapes["past_key_values.0.key"] == (3, 1, WINDOW, 4)
        assert shapes["past_key_values.1.value"] == (3, 2, MAX_LEN, 2)
        assert shapes["cache_position"] == (1 if kind == DECODE else 4,)


def test_a_case_longer_than_the_buffers_is_refused_with_the_reason(tmp_path: Path) -> None:
    options = static(max_len=10)
    case = Case("long", seeded_tokens(MODEL, 11, 1), (8, 3), (0,))
    with pytest.raises(TraceError, match=r"case long: step 1 ends at token 11.*10 rows.*--max-len"):
        list(play(opened(tmp_path, options), StaticDecoder(options=options), case))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layout": "dynamic", "chunk": 4}, "--chunk belongs to --layout static"),
        ({"layout": "static", "max_len": 1}, "--max-len 1: expected 2"),
        ({"layout": "static", "max_len": 65}, "64 positions"),
        ({"layout": "static", "max_len": 8, "chunk": 9}, "--chunk 9"),
        ({"layout": "static", "batch": 0}, "--batch 0"),
        ({"layout": "static", "profile": "bare"}, "--profile bare has the dynamic layout only"),
        ({"profile": "modern", "opset": 22}, "--profile modern needs --opset 23"),
        ({"layout": "static", "profile": "modern", "opset": 23}, "--opset 24 or later in the static layout"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        resolve_options(ExportOptions(**given), MODEL)
