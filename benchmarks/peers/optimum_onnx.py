"""Optimum's ONNX export with past, in plain ONNX Runtime."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

REQUIREMENTS = ["torch==2.13.0", "optimum-onnx[onnxruntime]==0.1.0", "onnxruntime==1.32.0"]


def export(checkpoint: Path, folder: Path) -> None:
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", "export", "onnx", "--model", str(checkpoint)]
    subprocess.run([*command, "--task", "text-generation-with-past", str(folder)], check=True)


def open(folder: Path, threads: int) -> Any:
    from ort_loop import Decoder

    return Decoder(next(folder.rglob("*.onnx")), threads)
