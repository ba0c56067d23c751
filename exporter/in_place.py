"""A bundle written into its checkpoint's own folder, so that its graphs point at the checkpoint's own weights.

External data must lie in the graph's folder: names that climb out are refused by ONNX, ONNX Runtime and this project,
and so are links out of it. So the graphs go to the weights, and nothing of the checkpoint is touched.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvparity.exporter.checkpoint.source import Checkpoint
from kvparity.exporter.contract.bundle import MANIFEST
from kvparity.exporter.contract.errors import ExportError
from kvparity.exporter.contract.files import locked, sync
from kvparity.exporter.contract.spec import ExportOptions

__all__ = ["beside_weights", "refuse_reference"]

_OWN = (MANIFEST, "prefill.onnx", "decode.onnx", "verify.py", "cases")  # what an export writes beside a model's files
_OLD = ".kvparity.old"


def refuse_reference(checkpoint: Checkpoint, target: Path, options: ExportOptions) -> None:
    """Refuse what ``--weights reference`` cannot do.

    Raises:
        ExportError: The weights are no plain safetensors files in the bundle's own folder, or would be converted.
    """
    if checkpoint.gguf is not None:
        raise ExportError("--weights reference: a GGUF file's weights are converted; use --weights copy")
    if options.quantize != "none":
        raise ExportError("--weights reference: --quantize writes new weights; use --weights copy")
    folder = checkpoint.folder.resolve()
    if target.resolve() != folder:
        raise ExportError(
            f"--weights reference: graphs may not point out of their folder, so the bundle goes into the checkpoint's "
            f"own; leave -o out, or give -o {checkpoint.folder}"
        )
    for file in sorted({tensor.file for tensor in checkpoint.stored().values()}):
        if file.resolve().parent != folder or file.stat().st_nlink > 1:
            raise ExportError(
                f"--weights reference: {file.name} is a link, and ONNX's checker and ONNX Runtime refuse linked "
                "weights; use --weights copy, or replace the link by the file"
            )


@contextmanager
def beside_weights(folder: Path) -> Iterator[Path]:
    """Yield a checkpoint's folder to write a bundle's files into; after an error they are gone and the old ones back.

    The manifest is written last, so that a kill leaves a folder that is a checkpoint and no bundle.

    Raises:
        ExportError: The folder has a file of a bundle's name, but no bundle.
    """
    with locked(folder / MANIFEST):
        yield from _beside_weights(folder)


def _beside_weights(folder: Path) -> Iterator[Path]:
    old = folder / _OLD
    if old.exists():  # a killed export: what it wrote is worth nothing
        _remove(folder)
        _move(old, folder)
    strange = [name for name in _OWN if (folder / name).exists()]
    if strange and MANIFEST not in strange:
        raise ExportError(f"{folder}: has {strange[0]} and no {MANIFEST}; an export would overwrite it: move it away")
    old.mkdir()
    _move(folder, old)
    try:
        yield folder
        sync(folder, *(folder / name for name in _OWN))
    except BaseException:
        _remove(folder)
        _move(old, folder)
        raise
    shutil.rmtree(old)


def _move(source: Path, target: Path) -> None:
    """Move a bundle's own files; the folder that kept them goes once it is empty."""
    for name in reversed(_OWN):  # the manifest last
        if (source / name).exists():
            (source / name).rename(target / name)
    if source.name == _OLD:
        source.rmdir()


def _remove(folder: Path) -> None:
    for name in _OWN:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
