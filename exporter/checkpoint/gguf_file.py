"""The head of a GGUF file: its keys and its table of tensors. Weights are mapped and not read.

gguf's own reader makes four arrays of every token: 10 s and 0.7 GB for a vocabulary of 262,144, of which a config needs
the length alone. Format: ggml's docs/gguf.md.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from kvparity.exporter.contract.errors import ExportError

__all__ = ["GgufFile", "GgufTensor", "read_gguf"]

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_FORMATS = dict(enumerate(("<B", "<b", "<H", "<h", "<I", "<i", "<f", "<?"))) | {10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_FLOATS = (6, 12)
_DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
_ALIGNMENT = 32
_MOST_DIMENSIONS = 4


@dataclass(frozen=True, eq=False)
class GgufTensor:
    """One tensor of a GGUF file.

    Attributes:
        kind: Its ``gguf.GGMLQuantizationType``.
        shape: Of its values, the last dimension moving fastest.
        rows: As they are stored: floats, or bytes of blocks along the last dimension. Mapped and not read.
    """

    kind: Any
    shape: tuple[int, ...]
    rows: npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class GgufFile:
    """A GGUF file whose head was read.

    Attributes:
        name: Its base name.
        architecture: llama.cpp's name of the model's kind.
        keys: Every key; lists of texts, such as the vocabulary, as their length.
        tensors: Every tensor by llama.cpp's name.
    """

    name: str
    architecture: str
    keys: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def read_gguf(path: Path) -> GgufFile:
    """Read the head of a GGUF file.

    Raises:
        ExportError: It is no GGUF file of a model, is damaged or cut off, or is one part of several.
    """
    try:
        state = path.stat()
        found = _read(path, state.st_size, state.st_mtime_ns)
    except (struct.error, IndexError, KeyError, ValueError, OverflowError, OSError) as error:
        reason = "it ends within its head" if isinstance(error, struct.error) else str(error) or type(error).__name__
        raise ExportError(f"{path.name}: damaged or cut off GGUF file ({reason}); fetch it again") from error
    parts = found.keys.get("split.count", 1)
    if parts > 1:
        part = found.keys.get("split.no", 0) + 1
        first = path.name.replace(f"-{part:05}-of-", "-00001-of-")
        raise ExportError(
            f"{path.name}: part {part} of a GGUF file in {parts} parts; put them together with llama.cpp's "
            f"llama-gguf-split --merge {first} MODEL.gguf, and export that file"
        )
    kind = found.keys.get("general.type", "model")
    if kind != "model":
        raise ExportError(f"{path.name}: a GGUF file of type {kind!r}, which holds no model; give the model's own file")
    return found


@lru_cache(maxsize=4)
def _read(path: Path, size: int, _changed: int) -> GgufFile:
    if size < 24:
        raise ValueError(f"{size} bytes")
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        version, tensors, count = struct.unpack_from("<IQQ", data, 4)
        if data[:4] != _MAGIC:
            raise ExportError(f"{path.name}: not a GGUF file, it begins with {data[:4]!r}")
        if version not in _VERSIONS:
            raise ExportError(f"{path.name}: GGUF version {version}; versions 2 and 3 of little-endian files are read")
        keys, place = _read_keys(data, count)
        table, place = _read_table(data, tensors, place)
    alignment = keys.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"general.alignment is {alignment!r}")
    start = -(-place // alignment) * alignment
    found: dict[str, GgufTensor] = {}
    for name, shape, kind, offset in table:
        if name in found:
            raise ValueError(f"two tensors are called {name}")
        found[name] = _tensor(path, name, shape, kind, start + offset, size)
    architecture = keys.get("general.architecture")
    if not isinstance(architecture, str):
        raise ValueError("no general.architecture")
    return GgufFile(path.name, architecture, MappingProxyType(keys), MappingProxyType(found))


def _read_keys(data: mmap.mmap, count: int) -> tuple[dict[str, Any], int]:
    """Every key and value, and where the table of tensors starts."""
    keys: dict[str, Any] = {}
    place = 24
    for _ in range(count):
        key, place = _text(data, place)
        (kind,) = struct.unpack_from("<I", data, place)
        if key in keys:
            raise ValueError(f"two values of {key}")
        keys[key], place = _value(data, place + 4, kind)
    return keys, place


def _value(data: mmap.mmap, place: int, kind: int) -> tuple[Any, int]:
    """A value and the place after it; of a list of texts its length."""
    if kind == _STRING:
        return _text(data, place)
    if kind != _ARRAY:
        form = _FORMATS[kind]
        (value,) = struct.unpack_from(form, data, place)
        return _shortest(value) if kind in _FLOATS else value, place + struct.calcsize(form)
    inner, count = struct.unpack_from("<IQ", data, place)
    place += 12
    if inner in _FORMATS:
        values = np.frombuffer(data, np.dtype(_FORMATS[inner]), count, place).tolist()
        return values, place + count * struct.calcsize(_FORMATS[inner])
    if inner != _STRING:
        raise ValueError(f"a list of type {inner}")
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", data, place)
        place += 8 + length
    if place > len(data):
        raise struct.error
    return count, place


def _shortest(value: float) -> float:
    """The number that was meant by a float32: 1e-05 and not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if math.isfinite(value) else value


def _text(data: mmap.mmap, place: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, place)
    end = place + 8 + length
    if end > len(data):
        raise struct.error
    return data[place + 8 : end].decode(), end


def _read_table(data: mmap.mmap, count: int, place: int) -> tuple[list[tuple[str, tuple[int, ...], int, int]], int]:
    """(name, shape, type, offset) of every tensor, and the end of the table."""
    table = []
    for _ in range(count):
        name, place = _text(data, place)
        (dimensions,) = struct.unpack_from("<I", data, place)
        if dimensions > _MOST_DIMENSIONS:
            raise ValueError(f"{name} has {dimensions} dimensions")
        *sizes, kind, offset = struct.unpack_from(f"<{dimensions}QIQ", data, place + 4)
        place += 4 + 8 * dimensions + 12
        table.append((name, tuple(reversed(sizes)), kind, offset))
    return table, place


def _tensor(path: Path, name: str, shape: tuple[int, ...], number: int, place: int, size: int) -> GgufTensor:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        kind = GGMLQuantizationType(number)
        block, bytes_of_block = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError) as error:
        raise ExportError(
            f"{path.name}: {name} is of type {number}, which the installed gguf library does not know; "
            "pip install -U gguf, or quantise the model to another type"
        ) from error
    width = shape[-1] if shape else 1
    if width % block:
        raise ValueError(f"{name} has rows of {width}, which are no whole blocks of {block}")
    stored = (*shape[:-1], width // block * bytes_of_block)
    if place + math.prod(stored) > size:
        raise ValueError(f"{name} ends at byte {place + math.prod(stored)}, the file has {size}")
    dtype = np.dtype(_DTYPES.get(kind.name, "u1"))
    stored = (*stored[:-1], stored[-1] // dtype.itemsize)
    rows = (
        np.memmap(path, dtype, mode="r", offset=place, shape=stored) if math.prod(stored) else np.empty(stored, dtype)
    )
    return GgufTensor(kind, shape, rows)
