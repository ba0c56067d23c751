"""llama.cpp through llama-cpp-python, on the GGUF file as it is; PyPI has its source alone, so pip must compile it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

PLAYS_GGUF = True
REQUIREMENTS = ["llama-cpp-python==0.3.16", "gguf>=0.17"]


class Decoder:
    """One conversation, keys and values in float32."""

    def __init__(self, path: Path, threads: int) -> None:
        import llama_cpp

        kinds = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
        settings = {"n_ctx": 2048, "n_threads": threads, "n_threads_batch": threads, "verbose": False}
        self._model = llama_cpp.Llama(str(path), **settings, **kinds)
        self._logits = llama_cpp.llama_get_logits_ith

    def reset(self) -> None:
        self._model.reset()

    def feed(self, ids: Any) -> Any:
        self._model.eval(ids.tolist())
        return np.ctypeslib.as_array(self._logits(self._model.ctx, -1), (self._model.n_vocab(),))


def open(path: Path, threads: int) -> Any:
    if path.is_dir():
        path = next(path.glob("*.gguf"))
    return Decoder(path, threads)
