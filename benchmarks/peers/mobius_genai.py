"""mobius-onnx inside onnxruntime-genai: past and present share a buffer, the loop is in C++."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mobius_onnx
import numpy as np

REQUIREMENTS = ["torch==2.13.0", "mobius-onnx==0.1.0", "onnxruntime==1.32.0", "onnxruntime-genai==0.18.0"]
EXPORT_OF = "mobius_onnx"
export = mobius_onnx.export


class Decoder:
    """One conversation."""

    def __init__(self, folder: Path, threads: int) -> None:
        import onnxruntime_genai

        path = next(folder.rglob("genai_config.json"))
        config = json.loads(path.read_text(encoding="utf-8"))
        config["model"]["decoder"].setdefault("session_options", {})["intra_op_num_threads"] = threads
        path.write_text(json.dumps(config, indent=1), encoding="utf-8")
        self._length = min(config["model"].get("context_length", 1024), 1024)
        self._genai, self._model = onnxruntime_genai, onnxruntime_genai.Model(str(path.parent))
        self.reset()

    def reset(self) -> None:
        parameters = self._genai.GeneratorParams(self._model)
        parameters.set_search_options(max_length=self._length)
        self._generator = self._genai.Generator(self._model, parameters)

    def feed(self, ids: Any) -> Any:
        self._generator.append_tokens(ids.astype(np.int32)[None])
        return self._generator.get_logits()[0, -1]


def open(folder: Path, threads: int) -> Any:
    return Decoder(folder, threads)
