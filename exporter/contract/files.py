"""Folders written whole or not at all, and large files put into them without being read into memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvparity.exporter.contract.errors import BundleError

__all__ = ["clone_blocks", "copy_file", "link_file", "new_folder", "swap", "sync"]

_FICLONE = 0x40049409  # linux/fs.h


@contextmanager
def new_folder(target: Path, marker: str, what: str = "a bundle") -> Iterator[Path]:
    """Yield a temporary sibling folder that becomes ``target`` when the block ends without an error.

    An earlier ``target`` is replaced only then; after an error or a kill it is untouched. Folders left by a killed
    run are removed by the next one.

    Args:
        target: The folder.
        marker: A file that shows that an earlier folder may be replaced.
        what: What a folder with that file is, for messages.

    Raises:
        BundleError: ``target`` exists and is neither empty nor such a folder, or its parent cannot be written.
    """
    target = target.absolute()
    if target.exists() and not (target.is_dir() and ((target / marker).exists() or not any(target.iterdir()))):
        raise BundleError(f"{target}: exists and is not {what}; choose another folder with -o")
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


def clone_blocks(source: Path, target: Path) -> None:
    """Make a file of its own that shares its blocks on disk with another until either is written.

    Raises:
        OSError: The file system cannot (ext4 and tmpfs cannot; Btrfs, XFS and bcachefs can).
        ImportError: The system has no such call; Linux has.
    """
    import fcntl

    try:
        with source.open("rb") as reader, target.open("wb") as writer:
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
    except OSError:
        target.unlink(missing_ok=True)
        raise


def copy_file(source: Path, target: Path) -> None:
    """A file of its own with the same bytes: its blocks cloned where the disk can, copied by the system otherwise."""
    try:
        clone_blocks(source, target)
    except (ImportError, OSError):
        shutil.copyfile(source, target)


def link_file(source: Path, target: Path) -> None:
    """The same file under a second name, for folders that go again; a copy where the disk has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
