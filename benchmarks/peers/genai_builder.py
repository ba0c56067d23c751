"""onnxruntime-genai's own model builder, played by onnxruntime-genai."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mobius_genai

REQUIREMENTS = ["torch==2.13.0", "transformers>=5.24,<6", "onnxruntime==1.32.0", "onnxruntime-genai==0.18.0", "onnx-ir"]
open = mobius_genai.open


def export(checkpoint: Path, folder: Path) -> None:
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint), "-o", str(folder)]
    subprocess.run([*command, "-p", "fp32", "-e", "cpu", "-c", str(folder.parent / "genai-cache")], check=True)
