"""Both tracers give the same graph: operators, constants and, in float64, values.

Left out is how sizes are computed (``past + sequence - window``): torch.export takes another input's size, or more
operators for the same number. Values are compared whatever the operators are.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from benchmarks.same_graphs import signature
from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.cases import Case, seeded_tokens
from kvparity.exporter.contract.errors import ExportError
from tests.families import FAMILIES, Family, make_config, save_checkpoint

pytest.importorskip("torch", reason="the exporter's extra is not installed")

DEFAULT = ("llama", "gemma3", "olmoe")  # the plain one, sliding windows, a mixture of experts
GRAPHS = ("prefill.onnx", "decode.onnx")
CHUNKS = (9, 1, 5, 1)  # past a window of 8


def traced(checkpoint: Path, folder: Path) -> tuple[Bundle, str]:
    """A bundle without vectors, and what the stage line says of its tracer."""
    from kvparity.exporter.checkpoint.source import resolve
    from kvparity.exporter.contract.spec import ExportOptions
    from kvparity.exporter.export import Stage, export

    stages: list[Stage] = []
    bundle = export(resolve(str(checkpoint)), folder, ExportOptions(), report=stages.append, in_process=True)
    return bundle, next(stage.note for stage in stages if stage.name == "trace")


def operators(path: Path) -> list[str]:
    """Operators, constants and wires of a graph, but for the arithmetic of sizes."""
    return list(signature(ir.load(path), sizes=False))


def largest_difference(one: Bundle, other: Bundle) -> float:
    """Of all outputs of a case in float64, relative to the largest number of its output."""
    from kvparity.runners.decode.play import play
    from kvparity.runners.engines.exact import ExactSession

    case = Case("all", seeded_tokens(one.model, sum(CHUNKS), 3), CHUNKS, (0,))
    calls = [list(play(bundle, ExactSession(bundle, "ort"), case)) for bundle in (one, other)]
    assert len(calls[0]) == len(calls[1]) == len(CHUNKS)
    largest = 0.0
    for mine, theirs in zip(*calls, strict=True):
        assert mine.outputs.keys() == theirs.outputs.keys() != set()
        for name, value in mine.outputs.items():
            assert value.shape == theirs.outputs[name].shape
            scale = max(1.0, float(np.max(np.abs(value), initial=0.0)))
            largest = max(largest, float(np.max(np.abs(value - theirs.outputs[name]), initial=0.0)) / scale)
    return largest


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, id=f.name, marks=[] if f.name in DEFAULT else [pytest.mark.slow]) for f in FAMILIES],
)
def test_the_quick_tracer_gives_the_graph_of_torch_export(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save_checkpoint(make_config(family), tmp_path / "hf")
    try:
        quick, note = traced(checkpoint, tmp_path / "quick")
    except ExportError as error:
        pytest.skip(f"refused: {error}")
    if note != "prefill and decode by recording":
        assert family.name not in DEFAULT
        pytest.skip(note)

    def unusable(*_: object) -> object:
        raise RuntimeError("hidden by this test")

    monkeypatch.setattr("kvparity.exporter.trace.capture._record", unusable)
    slow, note = traced(checkpoint, tmp_path / "slow")
    assert note == "prefill and decode by torch.export, because hidden by this test"
    assert largest_difference(quick, slow) <= 1e-12
    for name in GRAPHS:
        assert operators(quick.root / name) == operators(slow.root / name)
