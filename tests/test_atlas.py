"""The atlas's page: what is wrong has to be shown twice, and what nobody ran is said to be so."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.atlas import page
from benchmarks.atlas.exporters import EXPORTERS
from benchmarks.atlas.models import MODELS, older_names


def row(left_padding: str, plain: float | str) -> dict[str, Any]:
    cells = {"fits": "match", "prefill": "match", "left padding": left_padding}
    return {"verdict": "mismatch", "why": "a | b", "cells": cells, "plain": {"left padding": plain}}


@pytest.mark.parametrize(
    ("plain", "shown"), [(11.5, "**wrong** 1.2e+01"), (1e-6, "*unconfirmed* 1.2e+01"), ("Error", "*unconfirmed*")]
)
def test_a_cell_is_wrong_only_where_plain_onnx_runtime_says_so_too(plain: float | str, shown: str) -> None:
    cells = list(page._cells(row("mismatch 1.2e+01", plain)))
    assert cells[page.QUESTIONS.index("prefill")] == "right"
    assert shown in cells[page.QUESTIONS.index("left padding")]


def test_rounded_weights_are_no_confirmation_and_their_cost_is_a_line_of_its_own() -> None:
    found = row("mismatch 1.2e+01", 11.5)
    found["cells"]["cost"] = "KL 0.1 nats"
    assert "*unconfirmed* 1.2e+01" in list(page._cells(found))
    assert "- llama, what rounding costs: KL 0.1 nats." in list(page._exporter({"llama": found}))


def test_what_was_not_run_is_said_to_be_so(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "PAGE", tmp_path / "atlas.md")
    exporter = next(iter(EXPORTERS))
    page.write_page({f"{exporter} / {MODELS[0].name}": row("mismatch 1.2e+01", 11.5)})
    text = (tmp_path / "atlas.md").read_text(encoding="utf-8")
    assert f"(1 of {len(EXPORTERS) * len(MODELS)} items run)" in text
    assert "| not run |" in text
    assert "a \\| b" in text


def test_older_readers_find_rotary_bases_where_they_look() -> None:
    kinds = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    found = older_names({"rope_parameters": kinds, "dtype": "float32"})
    assert (found["rope_theta"], found["rope_local_base_freq"], found["rope_scaling"]) == (1e6, 1e4, None)
    scaled = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 4.0}
    found = older_names({"rope_parameters": scaled})
    assert (found["rope_theta"], found["rope_scaling"]) == (5e5, {"rope_type": "llama3", "factor": 4.0})
