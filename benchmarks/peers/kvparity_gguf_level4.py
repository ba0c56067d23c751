"""The same with activations rounded to int8, block by block, as llama.cpp rounds them."""

from __future__ import annotations

from pathlib import Path

import kvparity_ort

PLAYS_GGUF = True
key, open = kvparity_ort.key, kvparity_ort.open


def export(checkpoint: Path, folder: Path) -> None:
    kvparity_ort.export(checkpoint, folder, words=["--quantize", "gguf", "--accuracy-level", "4"])
