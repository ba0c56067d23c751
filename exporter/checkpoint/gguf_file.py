"""The head of a GGUF file: its keys and its table of tensors. Weights are mapped and not read.

gguf's own reader makes four arrays of every token: 10 s and 0.7 GB for a vocabulary of 262,144, of which a config needs
the length alone. Format: ggml's docs/gguf.md.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from kvparity.exporter.contract.errors import ExportError
from kvparity.exporter.contract.gguf_loading import part_paths

__all__ = ["GgufFile", "GgufTensor", "gguf_files", "read_gguf"]

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
        architecture: llama.cpp's name of the model's kind; empty where the file does not say, as later parts do not.
        keys: Every key; lists of texts, such as the vocabulary, as their length.
        tensors: Every tensor by llama.cpp's name.
    """

    name: str
    architecture: str
    keys: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def gguf_files(path: Path) -> list[Path]:
    """The files that a GGUF file consists of, first to last, whichever of them is named.

    Raises:
        ExportError: It is no GGUF file, is damaged, or some of its parts are not beside it.
    """
    parts = _parts(_head(path))
    if parts == 1:
        return [path]
    paths = part_paths(path)
    if len(paths) != parts:
        start = path.stem.partition("-0000")[0]
        raise ExportError(
            f"{path.name}: one of {parts} parts of a GGUF file, which are found by name; "
            f"call them {start}-00001-of-{parts:05}.gguf to {start}-{parts:05}-of-{parts:05}.gguf"
        )
    absent = [other.name for other in paths if not other.is_file()]
    if absent:
        raise ExportError(
            f"{path.name}: {len(absent)} of the {parts} parts of this GGUF file are not beside it: "
            f"{', '.join(absent[:3])}{' …' if absent[3:] else ''}; put them into {path.parent}"
        )
    return paths


def read_gguf(path: Path) -> GgufFile:
    """Read the head of a GGUF file; of one in parts, the keys of the first and the tensors of all.

    Raises:
        ExportError: It is no GGUF file of a model, is damaged or cut off, or its parts do not belong together.
    """
    paths = gguf_files(path)
    heads = [_head(part) for part in paths]
    first = heads[0]
    if not first.architecture:
        raise ExportError(f"{path.name}: damaged or cut off GGUF file (no general.architecture); fetch it again")
    kind = first.keys.get("general.type", "model")
    if kind != "model":
        raise ExportError(f"{path.name}: a GGUF file of type {kind!r}, which holds no model; give the model's own file")
    tensors: dict[str, GgufTensor] = {}
    for number, head in enumerate(heads):
        place = (head.keys.get("split.no", 0), _parts(head))
        twice = sorted(tensors.keys() & head.tensors.keys())
        if place != (number, len(heads)) or twice:
            says = f"it says part {place[0] + 1} of {place[1]}"
            reason = says if place != (number, len(heads)) else f"{twice[0]} is in an earlier part too"
            raise ExportError(f"{head.name}: not part {number + 1} of {len(heads)} ({reason}); fetch all parts again")
        if number and _spare(paths[number], head) >= _ALIGNMENT:  # gguf's own writer does that
            raise ExportError(
                f"{head.name}: its tensors lie elsewhere than it says: it was written with another general.alignment "
                f"than {_ALIGNMENT} and does not say so; split the model again with llama.cpp's llama-gguf-split"
            )
        tensors |= head.tensors
    total = first.keys.get("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise ExportError(f"{path.name}: its parts hold {len(tensors)} tensors of {total}; fetch all parts again")
    return replace(first, tensors=MappingProxyType(tensors))


def _head(path: Path) -> GgufFile:
    """The head of one file."""
    try:
        state = path.stat()
        return _read(path, state.st_size, state.st_mtime_ns)
    except (struct.error, IndexError, KeyError, ValueError, OverflowError, OSError) as error:
        reason = "it ends within its head" if isinstance(error, struct.error) else str(error) or type(error).__name__
        raise ExportError(f"{path.name}: damaged or cut off GGUF file ({reason}); fetch it again") from error


def _spare(path: Path, head: GgufFile) -> int:
    """Bytes after the last tensor."""
    rows = [tensor.rows for tensor in head.tensors.values() if isinstance(tensor.rows, np.memmap)]
    ends = [each.offset + each.nbytes for each in rows]
    return path.stat().st_size - max(ends, default=path.stat().st_size)


def _parts(head: GgufFile) -> int:
    count = head.keys.get("split.count", 1)
    return count if isinstance(count, int) and count > 1 else 1


@lru_cache(maxsize=64)  # as many as the parts of one file
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
    architecture = keys.get("general.architecture")  # only the first of several parts has it
    name = architecture if isinstance(architecture, str) else ""
    return GgufFile(path.name, name, MappingProxyType(keys), MappingProxyType(found))


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
