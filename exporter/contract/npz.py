"""Uncompressed ``.npz`` files: the same arrays give the same bytes, and reading maps them instead of copying them."""

from __future__ import annotations

import mmap
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from kvparity.exporter.contract.errors import TraceError

__all__ = ["read_npz", "write_npz"]

Array = npt.NDArray[np.generic]
_ALIGNED = 64  # bytes: where the numbers of an array begin in the file, so that they can be used where they lie
_LOCAL = 30  # bytes of a zip's local header before the name; a zip64 field of 20 bytes follows the name


def write_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays by name, uncompressed, without dates."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for key, value in arrays.items():
            entry = zipfile.ZipInfo(f"{key}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            begin = archive.fp.tell() + _LOCAL + len(entry.filename.encode()) + 20 + 4  # type: ignore[union-attr]
            entry.extra = struct.pack("<HH", 0xD935, -begin % _ALIGNED) + bytes(-begin % _ALIGNED)
            with archive.open(entry, "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.asarray(value, order="C"), allow_pickle=False)


def read_npz(path: Path) -> dict[str, Array]:
    """Arrays by name, mapped read-only: what is not looked at is not read.

    Raises:
        TraceError: The file is not there, not an ``.npz``, compressed, or holds anything but numbers and text.
    """
    try:
        with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            return {
                info.filename.removesuffix(".npy"): _mapped(stream, data, info)
                for info in archive.infolist()
                if info.filename.endswith(".npy")
            }
    except (OSError, ValueError, EOFError, struct.error, zipfile.BadZipFile) as error:
        raise TraceError(f"{path}: not a readable .npz of reference vectors ({error})") from error


def _mapped(stream: BinaryIO, data: mmap.mmap, info: zipfile.ZipInfo) -> Array:
    stream.seek(info.header_offset)
    name, extra = struct.unpack("<26xHH", stream.read(_LOCAL))
    stream.seek(name + extra, 1)
    version = np.lib.format.read_magic(stream)
    read: Any = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    count, begin = int(np.prod(shape, dtype=np.int64)), stream.tell()
    if (
        info.compress_type != zipfile.ZIP_STORED
        or fortran
        or dtype.hasobject
        or count * dtype.itemsize > info.file_size
    ):
        raise ValueError(f"{info.filename} is not a plain array")
    if count == 0:
        return np.empty(shape, dtype)
    array: Array = np.frombuffer(data, dtype, count, begin).reshape(shape)
    return array
