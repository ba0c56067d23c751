"""llama.cpp through llama-cpp-python, for GGUF files; PyPI has its source alone, so pip must compile it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

REQUIREMENTS = ["llama-cpp-python==0.3.16"]


class Decoder:
    """One conversation."""

    def __init__(self, path: Path, threads: int) -> None:
        import llama_cpp

        self._model = llama_cpp.Llama(str(path), n_ctx=2048, n_threads=threads, n_threads_batch=threads, verbose=False)

    def reset(self) -> None:
        self._model.reset()

    def feed(self, ids: Any) -> Any:
        self._model.eval(ids.tolist())
        return np.asarray(self._model.scores[self._model.n_tokens - 1])


def open(checkpoint: Path, threads: int) -> Any:
    if checkpoint.suffix != ".gguf":
        raise SystemExit("the checkpoint is no GGUF file")
    return Decoder(checkpoint, threads)
