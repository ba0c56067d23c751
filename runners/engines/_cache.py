"""Cache of compiled graphs on disk, because a compiler may need minutes for what takes a second to run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from kvparity.exporter.contract.files import writing
from kvparity.runners.isolation.process import engines_folder

__all__ = ["compiled"]


def compiled(parts: list[Path | str], suffix: str, make: Callable[[Path], None]) -> Path:
    """The file or folder that ``make`` writes, made once for the same inputs.

    Args:
        parts: What it depends on: files by their content, words (engine, version, flags) as they are.
        suffix: Of its name.
        make: Writes what it is given the path of.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part.read_bytes() if isinstance(part, Path) else part.encode()).digest())
    folder = engines_folder() / "cache"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{digest.hexdigest()[:24]}{suffix}"
    if not path.exists():
        with writing(path) as scratch:  # a second process waits for the first one's
            if not path.exists():
                scratch.mkdir()
                make(scratch / path.name)
                (scratch / path.name).rename(path)
    return path
