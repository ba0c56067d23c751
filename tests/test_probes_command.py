"""``cli.py probes``: what is listed, what is written, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import cli
from kvparity.exporter.contract.bundle import Bundle
from kvparity.runners.inspect.probes import axes_of


def test_values_inside_are_listed_with_axes_and_shapes(subject: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["probes", str(subject.root), "--case", "handoff-8", "--step", "1", "--name", "layers.2.*", "--json"]
    assert cli.main(words) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    key = rows["layers.2.self_attn.key"]
    assert (key["axes"], key["shape"]) == ("batch, kv_heads, rows, head_dim", [1, 2, 9, 24])
    assert (key["graph"], key["step"]) == ("decode", 1)
    assert key["least"] < 0 < key["largest"]
    assert all(name.startswith("layers.2.") for name in rows)


def test_the_table_says_the_same_and_a_file_holds_the_values(
    subject: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["probes", str(subject.root), "--case", "prefill-9"]) == 0
    shown = capsys.readouterr().out
    assert "layers.3.self_attn.context" in shown
    assert "batch, sequence, heads, head_dim" in shown
    path = tmp_path / "golden.npz"
    assert cli.main(["probes", str(subject.root), "--case", "prefill-9", "-o", str(path)]) == 0
    with np.load(path) as archive:
        assert archive["prefill-9/step_0/probes/layers.3.self_attn.context"].shape == (1, 9, 4, 16)
        assert np.array_equal(archive["prefill-9/step_0/input_ids"], subject.vectors("prefill-9").case.tokens)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--case", "prefill-77"), "no case matches"),
        (("--case", "handoff-8", "--step", "40"), "no step 40"),
        (("--name", "layer.2*"), "no value inside matches"),
    ],
)
def test_what_is_not_there_is_one_line_and_exit_2(
    subject: Bundle, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    assert cli.main(["probes", str(subject.root), *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert len(captured.err.strip().splitlines()) == 1


def test_axes_have_the_contract_s_names_or_their_sizes() -> None:
    assert axes_of("layers.0.self_attn.query", (1, 4, 9, 16)) == ("batch", "heads", "sequence", "head_dim")
    assert axes_of("mask.sliding", (1, 1, 9, 9)) == ("batch", "1", "sequence", "rows")
    assert axes_of("layers.0.mlp.experts", (9, 2)) == ("9", "2")
