"""Folders written whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from exporter.errors import BundleError

__all__ = ["new_folder", "swap", "sync"]


@contextmanager
def new_folder(target: Path, marker: str) -> Iterator[Path]:
    """Yield a temporary sibling folder that becomes ``target`` when the block ends without an error.

    An earlier ``target`` is replaced only then; after an error or a kill it is untouched. Folders left by a killed
    run are removed by the next one.

    Args:
        target: The folder.
        marker: A file that shows that an earlier folder may be replaced.

    Raises:
        BundleError: ``target`` exists and is neither empty nor a bundle, or its parent cannot be written.
    """
    target = target.absolute()
    if target.exists() and not (target.is_dir() and ((target / marker).exists() or not any(target.iterdir()))):
        raise BundleError(f"{target}: exists and is not a bundle; choose another folder with -o")
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    except OSError as error:
        raise BundleError(f"{target.parent}: cannot be written ({error.strerror}); choose another folder") from error
    try:
        yield temporary
        sync(temporary)
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        swap(temporary, target, old)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync(folder: Path, *parts: Path) -> None:
    """Have everything in a folder, or these parts of it, on the disk."""
    found = [path for part in parts or (folder,) if part.exists() for path in (part, *part.rglob("*"))]
    for path in [*found, folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def swap(new: Path, target: Path, old: Path) -> None:
    """Move ``target`` (if any) to ``old`` and ``new`` to ``target``; put the old one back if that fails."""
    if target.exists():
        target.rename(old)
    try:
        new.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
