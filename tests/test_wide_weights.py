"""Large weights in float64 lie in a file that graphs map: the same numbers, written once, anew after a change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import load_file, save_file

from kvparity.exporter.contract.bundle import Bundle
from kvparity.runners.decode.play import play
from kvparity.runners.engines import _wide
from kvparity.runners.engines.exact import ExactSession
from kvparity.runners.locate.isolated import isolated
from kvparity.runners.locate.search import make_call


@pytest.fixture
def low(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but vectors is large, in a file of this test's own."""
    monkeypatch.setattr(_wide, "_weights", None)
    monkeypatch.setattr(_wide, "_LARGE", 64)
    monkeypatch.setattr(_wide, "_BLOCK", 100)


def outputs(bundle: Bundle, case: str) -> list[dict[str, np.ndarray]]:
    return [dict(step.outputs) for step in play(bundle, ExactSession(bundle, "ort"), bundle.vectors(case).case)]


def test_mapped_weights_give_the_bits_of_weights_inside(
    subject: Bundle, low: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped = outputs(subject, "handoff-8")
    assert (Path(_wide.folder()) / "weights").stat().st_size > 100_000
    monkeypatch.setattr(_wide, "_LARGE", 1 << 40)
    inside = outputs(subject, "handoff-8")
    assert len(mapped) == len(inside) > 1
    for left, right in zip(mapped, inside, strict=True):
        assert left.keys() == right.keys()
        assert all(np.array_equal(left[name], right[name]) for name in left)


def test_a_file_is_written_once_for_all_graphs(subject: Bundle, low: None) -> None:
    outputs(subject, "decode-only")
    size = (Path(_wide.folder()) / "weights").stat().st_size
    call = make_call(subject, subject.vectors("prefill-9"), 0)
    made = isolated(subject, "prefill", (), call.feeds)
    assert made.expected["logits"].dtype == np.float64
    assert made.noise["logits"].dtype == np.float32
    assert (Path(_wide.folder()) / "weights").stat().st_size == size


def test_a_weight_that_changed_on_disk_is_read_again(low: None, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"

    def widened(values: np.ndarray) -> np.ndarray:
        save_file({"w": values}, path)
        assert np.array_equal(load_file(path)["w"], values)
        offset = path.stat().st_size - values.nbytes
        tensor = ir.ExternalTensor(
            path.name,
            offset,
            values.nbytes,
            ir.DataType.FLOAT,
            name="w",
            shape=ir.Shape(values.shape),
            base_dir=tmp_path,
        )
        wide = _wide.wide_weight(tensor, "w")
        assert wide is not None
        return np.array(wide.numpy())

    for seed in (1, 2):
        values = np.random.default_rng(seed).normal(size=(20, 30)).astype(np.float32)
        assert np.array_equal(widened(values), values.astype(np.float64))


def test_small_weights_and_those_inside_a_graph_stay_there(tmp_path: Path) -> None:
    assert _wide.wide_weight(ir.tensor(np.zeros((2000, 2000), np.float32)), "w") is None
