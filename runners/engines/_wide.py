"""Large weights in float64, written once per process to a temporary file that every widened graph maps.

A graph that holds its weights itself may have 2 GB of them, and each of its copies takes them anew; a file that graphs
point into has no limit, and the system keeps no more of it in memory than is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kvparity.exporter.contract.files import scratch_folder

__all__ = ["folder", "wide_weight"]

_LARGE = 1 << 20  # elements from which a tensor goes to the file
_BLOCK = 1 << 21  # elements widened at a time
_FILE = "weights"


class _Weights:
    """The file, and what lies where in it."""

    def __init__(self) -> None:
        self._folder = scratch_folder("kvparity-float64-")
        self._known: dict[tuple[Any, ...], tuple[int, int]] = {}

    @property
    def folder(self) -> str:
        """Where external data of widened graphs lies."""
        return self._folder.name

    def place(self, tensor: Any) -> tuple[int, int]:
        """(offset, bytes) of an external tensor in float64; written where it is not there yet."""
        path = Path(tensor.path)
        state = path.stat()
        key = (str(path.absolute()), state.st_ino, state.st_mtime_ns, tensor.offset, tensor.length, int(tensor.dtype))
        if key not in self._known:
            self._known[key] = self._write(tensor.numpy().reshape(-1))
        return self._known[key]

    def _write(self, values: Any) -> tuple[int, int]:
        with (Path(self.folder) / _FILE).open("ab") as stream:
            offset = stream.tell()
            for start in range(0, values.size, _BLOCK):
                values[start : start + _BLOCK].astype(np.float64).tofile(stream)
        return offset, 8 * values.size


_weights: _Weights | None = None


def folder() -> str:
    """Folder of the file; empty while there is none."""
    return "" if _weights is None else _weights.folder


def wide_weight(tensor: Any, name: str) -> Any | None:
    """An external tensor of float64 for a large external one; None where a tensor is small or lies in its graph.

    Args:
        tensor: An onnx_ir tensor of any float type.
        name: Name of the initializer.
    """
    import onnx_ir as ir

    global _weights
    if not isinstance(tensor, ir.ExternalTensor) or tensor.size < _LARGE:
        return None
    if _weights is None:
        _weights = _Weights()
    offset, length = _weights.place(tensor)
    return ir.ExternalTensor(
        location=_FILE,
        offset=offset,
        length=length,
        dtype=ir.DataType.DOUBLE,
        shape=tensor.shape,
        name=name,
        base_dir=_weights.folder,
    )
