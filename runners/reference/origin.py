"""Finds the checkpoint that a bundle was made from, and recognises it by the hashes in the manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kvparity.exporter.contract.bundle import Bundle, CheckpointEntry
from kvparity.exporter.contract.checkpoint_files import CheckpointFiles, changed_file
from kvparity.exporter.contract.errors import BundleError

__all__ = ["Origin", "find_checkpoint"]


@dataclass(frozen=True)
class Origin:
    """Which weights PyTorch runs with.

    Attributes:
        checkpoint: The checkpoint; None where PyTorch runs with the bundle's own weights.
        sentence: The same in words, for the report.
    """

    checkpoint: CheckpointFiles | None
    sentence: str


def find_checkpoint(bundle: Bundle, given: Path | None = None) -> Origin:
    """The bundle's checkpoint where it can be found unchanged, the bundle's own weights otherwise.

    It is looked for where the export left it relative to the bundle, and in the hub's cache.

    Args:
        bundle: The bundle.
        given: Where the user says that it is: a folder, or a GGUF file.

    Raises:
        BundleError: ``given`` is another checkpoint.
    """
    entry = bundle.manifest.checkpoint
    if entry is None:
        if given is not None:
            raise BundleError(f"{bundle.root}: its manifest does not say what it was made from; --checkpoint is no use")
        return _own("its manifest names no checkpoint")
    if given is not None:
        folder = given.parent if entry.gguf else given
        changed = changed_file(folder, entry.files)
        if changed:
            raise BundleError(f"{given}: not the checkpoint of this bundle: {changed} differs or is missing")
        return _found(bundle, entry, folder)
    changed = "its checkpoint is not here, pass --checkpoint FOLDER"
    for folder in _places(bundle, entry):
        missing = changed_file(folder, entry.files)
        if not missing:
            return _found(bundle, entry, folder)
        if folder.is_dir():
            changed = f"{missing} of its checkpoint has changed since the export"
    return _own(changed)


def _own(why: str) -> Origin:
    return Origin(None, f"PyTorch with the bundle's own weights ({why}): what placing them did wrong is not seen")


def _found(bundle: Bundle, entry: CheckpointEntry, folder: Path) -> Origin:
    adapter = None
    if entry.adapter is not None:
        adapter = bundle.root.resolve() / entry.adapter
        changed = changed_file(adapter, entry.adapter_files)
        if changed:
            return _own(f"{changed} of the adapter {adapter.name} is missing or has changed")
    files = CheckpointFiles(folder, entry.gguf, adapter)
    merged = "" if adapter is None else f", the adapter {adapter.name} merged"
    return Origin(files, f"PyTorch with the checkpoint {bundle.manifest.source}, as transformers loads it{merged}")


def _places(bundle: Bundle, entry: CheckpointEntry) -> list[Path]:
    places = [] if entry.path is None else [(bundle.root.resolve() / entry.path).resolve()]
    source, revision = bundle.manifest.source, bundle.manifest.revision
    if revision is not None:
        from huggingface_hub import snapshot_download

        try:
            root = Path(snapshot_download(source, revision=revision, local_files_only=True))
        except Exception:  # not in the cache; huggingface_hub has a dozen errors for that
            return places
        places.append(root.joinpath(*PurePosixPath(entry.subfolder).parts))
    return places
