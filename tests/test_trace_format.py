"""docs/trace-format.md is true: its script, with an engine filled in, writes a trace that is judged like a live run."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cli
from kvparity.exporter.contract.bundle import Bundle

SCRIPT = re.search(
    r"```python\n(.*?)```", (Path(__file__).resolve().parents[1] / "docs" / "trace-format.md").read_text("utf-8"), re.S
)


def engine(root: Path, slip: float) -> tuple[Any, Any]:
    """``empty_caches`` and ``my_engine`` of the document, on plain ONNX Runtime; the second takes no code of ours."""
    import onnxruntime

    sessions = {kind: onnxruntime.InferenceSession(str(root / f"{kind}.onnx")) for kind in ("prefill", "decode")}

    def empty_caches() -> dict[str, Any]:
        ports = [port for port in sessions["decode"].get_inputs() if port.name.startswith("past")]
        return {
            port.name.replace("past_key_values", "present"): np.zeros((1, port.shape[1], 0, port.shape[3]), np.float32)
            for port in ports
        }

    def my_engine(graph: str, past: dict[str, Any], **feeds: Any) -> dict[str, Any]:
        feeds |= {name.replace("present", "past_key_values"): value for name, value in past.items()}
        session = sessions[graph]
        outputs = [port.name for port in session.get_outputs()]
        values = session.run(outputs, {port.name: feeds[port.name] for port in session.get_inputs()})
        return {name: value + np.float32(slip) for name, value in zip(outputs, values, strict=True)}

    return empty_caches, my_engine


@pytest.mark.parametrize(("slip", "code"), [(0.0, 0), (1e-3, 1)])
def test_the_documents_script_writes_a_trace_that_is_judged(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, slip: float, code: int
) -> None:
    assert SCRIPT is not None
    monkeypatch.chdir(tmp_path)
    os.symlink(tiny_bundle.root, "BUNDLE")
    empty_caches, my_engine = engine(tiny_bundle.root, slip)
    exec(SCRIPT[1], {"empty_caches": empty_caches, "my_engine": my_engine})
    assert cli.main(["compare", "BUNDLE", "--trace", "mine.npz", "--case", "handoff-127"]) == code
    assert "trace:mine.npz" in capsys.readouterr().out
