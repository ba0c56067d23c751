"""A GGUF file without its vocabulary and weights, from which the config and the table of tensors are read.

gguf's reader makes four arrays of every token: 10 s and 0.7 GB for a vocabulary of 262,144, of which a config
needs the length alone. The copy made here holds every other key and leaves the tensors' bytes as a hole in the file.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy.typing as npt

__all__ = ["GgufTensor", "gguf_head", "gguf_tensors"]

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # gguf.md: gguf_metadata_value_type
_UINT32, _STRING, _ARRAY = 4, 8, 9
_TOKENS = "tokenizer.ggml.tokens"


@dataclass(frozen=True, eq=False)
class GgufTensor:
    """One tensor of a GGUF file: its type, and its rows as they are stored, mapped and not read."""

    kind: Any
    rows: npt.NDArray[Any]


@dataclass(frozen=True)
class _Entry:
    """One key and value: its bytes in the file, and what its value is."""

    key: str
    start: int
    stop: int
    kind: int
    count: int


@contextmanager
def gguf_head(path: Path) -> Iterator[Path]:
    """Give the copy for as long as the block runs; the file itself where it is of a form that is not known here."""
    with TemporaryDirectory(prefix="kvparity-gguf-") as folder:
        copy = Path(folder) / path.name
        try:
            with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                made = _write(data, copy)
        except (struct.error, ValueError, KeyError, OSError):
            made = False
        yield copy if made else path


def gguf_tensors(path: Path) -> dict[str, GgufTensor]:
    """Every tensor of a GGUF file by llama.cpp's name."""
    import numpy as np
    from gguf import GGUFReader

    with gguf_head(path) as head:
        reader = GGUFReader(head)
        moved = _data_start(path, reader.alignment) - reader.data_offset if head != path else 0
        found: dict[str, GgufTensor] = {}
        for tensor in reader.tensors:
            place, shape = int(tensor.data_offset) + moved, tensor.data.shape
            rows = np.memmap(path, tensor.data.dtype, mode="r", offset=place, shape=shape)
            found[tensor.name] = GgufTensor(tensor.tensor_type, rows)
    return found


def _data_start(path: Path, alignment: int) -> int:
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        tensors, count = struct.unpack_from("<QQ", data, 8)
        end = _after_table(data, _entries(data, count)[1], tensors)
    return -(-end // alignment) * alignment


def _write(data: mmap.mmap, copy: Path) -> bool:
    if data[:4] != _MAGIC or struct.unpack_from("<I", data, 4)[0] not in _VERSIONS:
        return False
    tensors, count = struct.unpack_from("<QQ", data, 8)
    entries, table = _entries(data, count)
    table_end = _after_table(data, table, tensors)
    named = {entry.key: entry for entry in entries}
    architecture = named["general.architecture"]
    prefix = data[architecture.stop - architecture.count : architecture.stop].decode()
    kept = [data[entry.start : entry.stop] for entry in entries if not _is_vocabulary(entry)]
    if f"{prefix}.vocab_size" not in named and _TOKENS in named:
        key = f"{prefix}.vocab_size".encode()
        kept.append(struct.pack("<Q", len(key)) + key + struct.pack("<II", _UINT32, named[_TOKENS].count))
    head = data[:16] + struct.pack("<Q", len(kept)) + b"".join(kept) + data[table:table_end]
    with copy.open("wb") as stream:
        stream.write(head)
        stream.truncate(len(head) + len(data))  # a hole
    return True


def _is_vocabulary(entry: _Entry) -> bool:
    return entry.key.startswith("tokenizer.") and entry.kind == _ARRAY


def _entries(data: mmap.mmap, count: int) -> tuple[list[_Entry], int]:
    """Every key and value, and where the table of tensors starts."""
    entries, place = [], 24
    for _ in range(count):
        start = place
        length = _u64(data, place)
        key = data[place + 8 : place + 8 + length].decode()
        kind = struct.unpack_from("<I", data, place + 8 + length)[0]
        place, items = _skip(data, place + 12 + length, kind)
        entries.append(_Entry(key, start, place, kind, items))
    return entries, place


def _skip(data: mmap.mmap, place: int, kind: int) -> tuple[int, int]:
    """The place after a value; letters of a string, items of an array."""
    if kind == _STRING:
        length = _u64(data, place)
        return place + 8 + length, length
    if kind != _ARRAY:
        return place + _WIDTHS[kind], 1
    inner, count = struct.unpack_from("<IQ", data, place)
    place += 12
    if inner in _WIDTHS:
        return place + count * _WIDTHS[inner], count
    for _ in range(count):
        place = _skip(data, place, inner)[0]
    return place, count


def _after_table(data: mmap.mmap, place: int, tensors: int) -> int:
    """The end of the table of tensors: name, dimensions, type and offset of each."""
    for _ in range(tensors):
        place += 8 + _u64(data, place)
        place += 4 + 8 * struct.unpack_from("<I", data, place)[0] + 12
    return place


def _u64(data: mmap.mmap, place: int) -> int:
    return int(struct.unpack_from("<Q", data, place)[0])
