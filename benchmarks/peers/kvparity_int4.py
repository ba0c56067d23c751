"""kvparity, ``--quantize int4`` of the float32 checkpoint, with its defaults."""

from __future__ import annotations

from pathlib import Path

import kvparity_ort

key, open = kvparity_ort.key, kvparity_ort.open


def export(checkpoint: Path, folder: Path) -> None:
    kvparity_ort.export(checkpoint, folder, words=["--quantize", "int4"])
