"""Writes a safetensors file whose tensors are not known beforehand: data first, header into room left for it."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from kvparity.exporter.contract.blocks import ZERO_POINTS
from kvparity.exporter.contract.errors import ExportError
from kvparity.exporter.contract.placement import Placement

__all__ = ["FILE", "Writer", "write_tensors"]

FILE = "model.safetensors"
_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "uint8": "U8"}
_ROOM, _PER_TENSOR = 256, 160  # bytes of a header: its own, and of a tensor besides its name


class Writer:
    """Takes tensors one at a time; zero points, whose lengths may be odd, go last, so that all else stays aligned."""

    def __init__(self, stream: IO[bytes], tensors: int, longest: int) -> None:
        self._stream = stream
        self._start = 8 + _ROOM + tensors * (_PER_TENSOR + longest)
        self._start += -self._start % 64
        self._entries: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
        self._late: dict[str, npt.NDArray[Any]] = {}
        self._at = 0
        stream.seek(self._start)

    def __call__(self, name: str, array: npt.NDArray[Any]) -> None:
        """Write a tensor."""
        if name.endswith(ZERO_POINTS):
            self._late[name] = array
        else:
            self._write(name, array)

    def _write(self, name: str, array: npt.NDArray[Any]) -> None:
        self._entries[name] = (array.dtype.name, tuple(array.shape), self._at, array.nbytes)
        np.ascontiguousarray(array).tofile(self._stream)
        self._at += array.nbytes

    def finish(self) -> None:
        """Write what was held back, and the header."""
        for name, array in self._late.items():
            self._write(name, array)
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        for name, (dtype, shape, start, length) in self._entries.items():
            header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [start, start + length]}
        text = json.dumps(header, separators=(",", ":")).encode()
        if len(text) > self._start - 8:
            raise ExportError(
                f"{FILE}: its header takes {len(text)} bytes, more than the {self._start - 8} left for it"
            )
        self._stream.seek(0)
        self._stream.write(struct.pack("<Q", self._start - 8) + text.ljust(self._start - 8))

    def placements(self, location: str) -> dict[str, Placement]:
        """Where every tensor lies, once finished."""
        return {
            name: Placement(location, self._start + start, length, dtype, shape)
            for name, (dtype, shape, start, length) in self._entries.items()
        }


@contextmanager
def write_tensors(path: Path, tensors: int, longest: int) -> Iterator[Writer]:
    """Open a file for at most ``tensors`` tensors whose names have at most ``longest`` letters."""
    with path.open("wb") as stream:
        writer = Writer(stream, tensors, longest)
        yield writer
        writer.finish()
