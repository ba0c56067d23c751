"""onnxruntime-genai's own model builder, played by onnxruntime-genai."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

REQUIREMENTS = ["torch==2.13.0", "transformers>=5.24,<6", "onnxruntime==1.32.0", "onnxruntime-genai==0.18.0", "onnx-ir"]


def export(checkpoint: Path, folder: Path, precision: str = "fp32") -> None:
    command = [sys.executable, str(Path(__file__).resolve()), "-i", str(checkpoint), "-o", str(folder), "-p", precision]
    subprocess.run([*command, "-e", "cpu", "-c", str(folder.parent / "genai-cache")], check=True)


def open(folder: Path, threads: int) -> Any:
    import mobius_genai

    return mobius_genai.open(folder, threads)


def build() -> None:
    """Run the builder, with a config that has the rotary bases where it looks for them.

    Builder 0.18 imports models of transformers 5, but reads Gemma 3's bases under transformers 4's names and stops at
    ``KeyError: 'rope_type'`` with any config of 5, where every kind of layer has rotary parameters of its own.
    """
    from transformers import AutoConfig

    read = AutoConfig.from_pretrained

    def with_old_names(*given: Any, **options: Any) -> Any:
        config = read(*given, **options)
        kinds = getattr(config, "rope_parameters", None) or {}
        if "full_attention" in kinds:
            kinds["rope_type"] = kinds["full_attention"]["rope_type"]
            config.rope_theta = kinds["full_attention"]["rope_theta"]
            config.rope_local_base_freq = kinds["sliding_attention"]["rope_theta"]
        return config

    AutoConfig.from_pretrained = with_old_names
    runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    build()
