"""onnxruntime-genai's own model builder in int4 with its defaults, played by onnxruntime-genai."""

from __future__ import annotations

from pathlib import Path

import genai_builder

REQUIREMENTS = ["torch==2.13.0", "transformers>=5.24,<6", "onnxruntime==1.32.0", "onnxruntime-genai==0.18.0", "onnx-ir"]
open = genai_builder.open


def export(checkpoint: Path, folder: Path) -> None:
    genai_builder.export(checkpoint, folder, precision="int4")
