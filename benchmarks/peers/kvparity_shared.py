"""kvparity, profile ort in the shared layout, through the decoder that ``cli.py run`` uses."""

from __future__ import annotations

from pathlib import Path

import kvparity_ort

key, open = kvparity_ort.key, kvparity_ort.open


def export(checkpoint: Path, folder: Path) -> None:
    kvparity_ort.export(checkpoint, folder, "ort", "shared")
