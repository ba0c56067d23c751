"""kvparity, profile ort, through the decoder that ``cli.py run`` uses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import judged

ROOT = Path(__file__).resolve().parents[2]
PROFILE = "ort"


def key() -> str:
    """What the bundle depends on besides the checkpoint."""
    return judged.sources("exporter")


def export(
    checkpoint: Path, folder: Path, profile: str = PROFILE, layout: str = "dynamic", words: Sequence[str] = ()
) -> None:
    command = [sys.executable, "cli.py", "export", str(checkpoint), "-o", str(folder), "--vectors", "none"]
    command += ["--profile", profile, "--layout", layout, "--logits", "last", *words]  # decoding needs no others
    subprocess.run(command, check=True, cwd=ROOT)


def open(folder: Path, threads: int) -> Any:
    sys.path.insert(0, str(ROOT))
    from kvparity.exporter.contract.bundle import Bundle
    from kvparity.runners.base import RunnerSpec
    from kvparity.runners.decode.decoders import open_decoder

    return open_decoder(Bundle.open(folder), RunnerSpec("ort", {"threads": str(threads)}))
