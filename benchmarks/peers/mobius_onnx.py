"""mobius-onnx for ONNX Runtime's CPU, its merged graph in plain ONNX Runtime."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

REQUIREMENTS = ["torch==2.13.0", "mobius-onnx==0.1.0", "onnxruntime==1.32.0", "onnxruntime-genai==0.18.0"]


def export(checkpoint: Path, folder: Path) -> None:
    command = [sys.executable, "-m", "mobius", "build", "--config", str(checkpoint), str(folder), "--ep", "cpu"]
    subprocess.run([*command, "--dtype", "f32", "--runtime", "ort-genai"], check=True)


def open(folder: Path, threads: int) -> Any:
    from ort_loop import Decoder

    return Decoder(next(folder.rglob("model.onnx")), threads)
