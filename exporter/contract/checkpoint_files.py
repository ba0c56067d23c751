"""The files of a checkpoint as transformers loads them, and what a bundle keeps to find and to recognise them again."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kvparity.exporter.contract.bundle import CheckpointEntry, FileEntry, file_entry

__all__ = ["CheckpointFiles", "changed_file", "checkpoint_entry"]


@dataclass(frozen=True)
class CheckpointFiles:
    """What ``from_pretrained`` is pointed at.

    Attributes:
        folder: Folder with ``config.json`` and the weights, or with the GGUF file.
        gguf: Name of the GGUF file in ``folder``, where it is one.
        adapter: Folder of a LoRA adapter that is merged into the weights, where one is.
    """

    folder: Path
    gguf: str | None = None
    adapter: Path | None = None


def checkpoint_entry(
    checkpoint: CheckpointFiles, names: tuple[str, ...], bundle: Path, subfolder: str
) -> CheckpointEntry:
    """Describe a checkpoint for a manifest: sizes and hashes of its files, and the way to it from the bundle.

    The way is kept only where bundle and checkpoint lie below one folder that is not the root of the file system:
    beyond that it would tell where things are on one machine, and would lead nowhere on any other.

    Args:
        checkpoint: Where the files lie.
        names: Files in its folder that the model is made of.
        bundle: Where the bundle will lie.
        subfolder: Folder inside a hub repository.
    """
    files = tuple(file_entry(checkpoint.folder, checkpoint.folder / name) for name in names)
    adapter = checkpoint.adapter
    parts = () if adapter is None else tuple(sorted(p for p in adapter.glob("adapter_*") if p.is_file()))
    return CheckpointEntry(
        path=_way(bundle, checkpoint.folder),
        subfolder=subfolder,
        gguf=checkpoint.gguf,
        adapter=None if adapter is None else _way(bundle, adapter) or adapter.name,
        files=files,
        adapter_files=tuple(file_entry(path.parent, path) for path in parts),
    )


def changed_file(folder: Path, files: tuple[FileEntry, ...]) -> str:
    """The first file that is missing or is another than it was; empty where all are the same."""
    for entry in files:
        path = folder / PurePosixPath(entry.path).name
        if not path.is_file() or path.stat().st_size != entry.bytes or file_entry(folder, path).sha256 != entry.sha256:
            return entry.path
    return ""


def _way(bundle: Path, folder: Path) -> str | None:
    start, end = bundle.resolve(), folder.resolve()
    try:
        shared = Path(os.path.commonpath([start, end]))
    except ValueError:  # two drives
        return None
    return None if shared == Path(shared.anchor) else PurePosixPath(os.path.relpath(end, start)).as_posix()
