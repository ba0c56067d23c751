"""kvparity, ``--quantize gguf``: the GGUF file's own values, activations as they are."""

from __future__ import annotations

from pathlib import Path

import kvparity_ort

PLAYS_GGUF = True
key, open = kvparity_ort.key, kvparity_ort.open


def export(checkpoint: Path, folder: Path) -> None:
    kvparity_ort.export(checkpoint, folder, words=["--quantize", "gguf"])
