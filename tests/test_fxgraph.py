"""A traced program is made translatable without a second trace, and stays what it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

torch: Any = pytest.importorskip("torch", reason="the exporter's extra is not installed")


class Scaled(torch.nn.Module):
    """What Ministral 3 does to its queries: whole numbers divided, then met with fractions."""

    def forward(self, positions, x):  # type: ignore[no-untyped-def]
        return x * (1 + 0.1 * torch.log(1 + torch.floor(positions / 4))) + positions


def translated() -> onnx.ModelProto:
    from kvparity.exporter.contract.spec import ExportOptions
    from kvparity.exporter.trace.capture import _translate

    program = torch.export.export(Scaled(), (torch.arange(9), torch.ones(9)))
    return ir.to_proto(_translate(program, ExportOptions()))


def test_whole_numbers_that_meet_fractions_are_cast() -> None:
    from onnx.reference import ReferenceEvaluator

    model = translated()
    onnx.checker.check_model(model, full_check=True)
    positions, x = np.arange(9), np.linspace(-1, 1, 9, dtype=np.float32)
    names = [value.name for value in model.graph.input]
    (found,) = ReferenceEvaluator(model).run(None, dict(zip(names, (positions, x), strict=True)))
    assert np.abs(found - Scaled()(torch.from_numpy(positions), torch.from_numpy(x)).numpy()).max() < 1e-6


def test_left_alone_they_are_an_invalid_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twin: the checker sees it only when it infers types."""
    from kvparity.exporter.trace import fx_normalise as fxgraph

    monkeypatch.setattr(fxgraph, "_promote", lambda graph, node: None)
    with pytest.raises(onnx.shape_inference.InferenceError):
        onnx.checker.check_model(translated(), full_check=True)
