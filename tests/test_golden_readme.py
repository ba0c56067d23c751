"""cases/README.md is what a bundle's options make of it: its expressions are evaluated beside what graphs return."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvparity.exporter.contract.ports import host_inputs
from kvparity.exporter.contract.spec import ExportOptions
from kvparity.exporter.contract.vectors import cache_key
from kvparity.exporter.golden.readme import readme
from kvparity.runners.decode.play import play
from tests.synthetic import MODEL, Decoder, make_bundle

DYNAMIC = [
    ExportOptions(logits=logits, sliding_cache=cache, profile=profile)  # type: ignore[arg-type]
    for logits, cache, profile in product(("all", "last"), ("bounded", "full"), ("portable", "bare"))
]


def first_slot(text: str, start: int, stop: int) -> int:
    """Where the page says that a call's logits begin."""
    (expression,) = re.findall(r"of the slots from `([^`]+)`", " ".join(text.split()))[:1]
    return int(eval(expression, {"start": start, "stop": stop}))


def first_row(text: str, window: int | None, stop: int) -> int:
    """Where the page says that a slot's rows begin."""
    plain = " ".join(text.split())
    sliding = re.search(r"from `([^`]+)` in a slot with window W and from `([^`]+)` in others to `stop`", plain)
    every = re.search(r"`cache.N.key/value` of the slots from `([^`]+)` to `stop`", plain)
    assert (sliding is None) != (every is None)
    expression = every[1] if every else sliding[1 if window else 2]  # type: ignore[index]
    return int(eval(expression, {"W": window, "stop": stop, "max": max}))


@pytest.mark.parametrize(
    "options", DYNAMIC, ids=lambda options: f"{options.logits}-{options.sliding_cache}-{options.profile}"
)
def test_a_replay_after_the_page_expects_what_the_graphs_return(tmp_path: Path, options: ExportOptions) -> None:
    bundle = make_bundle(tmp_path / "bundle", options=replace(options, profile="portable"), float64=False)
    manifest = replace(bundle.manifest, options=options, host_inputs=host_inputs(MODEL, options))
    text = readme(manifest)
    assert ("attention_mask[:, :stop]`." in text) == (options.profile != "bare")
    assert ("`host_inputs`" in text) == bool(manifest.host_inputs)
    compared = 0
    for entry in bundle.manifest.cases:
        vectors = bundle.vectors(entry.name)
        mask = vectors.case.mask == 1
        for result in play(bundle, Decoder(options=bundle.options), vectors.case):
            start, stop, which = result.step.start, result.step.stop, result.step.which
            first = first_slot(text, start, stop)
            logits, wanted = result.outputs["logits"], vectors.arrays["logits"][which, first:stop]
            assert logits.shape == wanted.shape
            assert np.abs(np.subtract(logits, wanted, dtype=np.float64))[mask[which, first:stop]].max(initial=0) < 1e-4
            for slot, part in bundle.model.cache_names():
                kept = first_row(text, slot.window, stop)
                rows = result.outputs[f"present.{slot.slot}.{part}"]
                expected = vectors.arrays[cache_key(slot.slot, part)][which, :, kept:stop]
                assert rows.shape == expected.shape
                apart = np.moveaxis(np.subtract(rows, expected, dtype=np.float64), 2, 1)
                assert np.abs(apart[mask[which, kept:stop]]).max(initial=0) < 1e-4
                compared += 1
    assert compared


@pytest.mark.parametrize(("logits", "cache"), list(product(("all", "last"), ("bounded", "full"))))
@pytest.mark.parametrize("batch", [1, 2])
def test_the_static_page_states_the_capacity_of_every_buffer(
    logits: Any, cache: Any, batch: int, tmp_path: Path
) -> None:
    options = ExportOptions(
        layout="static",
        max_len=40,
        chunk=4,
        batch=batch,
        logits=logits,
        sliding_cache=cache,
    )
    bundle = make_bundle(tmp_path / "bundle", cases=())
    text = " ".join(readme(replace(bundle.manifest, options=options)).split())
    (sizes,) = re.findall(r"`s mod capacity`, which is (a sliding slot's window, else )?40;", text)
    for slot in MODEL.slots:
        stated = slot.window if sizes and slot.window else 40
        assert stated == options.capacity(slot)
    assert "longer than 4 tokens" in text
    assert ("A call takes 2 rows" in text) == (batch == 2)
    assert first_slot(text, 3, 9) == (8 if logits == "last" else 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (ExportOptions(), "`python ../verify.py` does all of this"),
        (ExportOptions(dtype="float16"), "`python ../verify.py` does all of this"),
        (ExportOptions(dtype="bfloat16"), "`../verify.py` refuses this bundle"),
        (ExportOptions(profile="ort", provider="webgpu"), "--runner ort:provider=webgpu"),
    ],
)
def test_the_last_step_names_what_replays_this_bundle(options: ExportOptions, words: str, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", cases=())
    text = readme(replace(bundle.manifest, options=options))
    assert words in text.splitlines()[-1]
    assert "{" not in text.replace("{input,output}", "")
