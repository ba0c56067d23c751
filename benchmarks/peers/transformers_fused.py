"""transformers' own OnnxExporter with its fusions for ONNX Runtime's CPU."""

from __future__ import annotations

from pathlib import Path

import transformers_onnx

open = transformers_onnx.open


def export(checkpoint: Path, folder: Path) -> None:
    transformers_onnx.export(checkpoint, folder, "cpu")
