"""Tensors and words over a pipe: what a session and its engine's process say to each other, in any language.

A frame is a little-endian uint32 with the length of the header, the header as UTF-8 JSON, and then the bytes of every
tensor in the header's list ``tensors`` (``name``, ``dtype`` as numpy spells it, ``shape``), C order, little-endian,
one after the other. There is no pickle, so that a worker may be of another Python version, or not Python at all.
"""

from __future__ import annotations

import json
import math
import os
import selectors
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from kvparity.exporter.contract.dtypes import numpy_dtype

__all__ = ["Frame", "HungError", "decode_tensors", "encode", "read_exactly", "read_frame", "requests", "write_all"]

Array = npt.NDArray[np.generic]
Frame = tuple[dict[str, Any], dict[str, Array]]
_LENGTH = struct.Struct("<I")
_PIECE = 1 << 20


class HungError(Exception):
    """The other side did not read or write in time."""


def encode(header: Mapping[str, Any], tensors: Mapping[str, Array] | None = None) -> list[bytes | memoryview]:
    """A frame as pieces to write one after the other."""
    arrays = {name: np.asarray(value, order="C") for name, value in (tensors or {}).items()}
    table = [{"name": name, "dtype": value.dtype.name, "shape": value.shape} for name, value in arrays.items()]
    text = json.dumps({**header, "tensors": table}).encode()
    pieces: list[bytes | memoryview] = [_LENGTH.pack(len(text)) + text]
    pieces += [value.reshape(-1).view(np.uint8).data for value in arrays.values() if value.size]
    return pieces


def decode_tensors(table: list[dict[str, Any]], read: Callable[[int], bytes]) -> dict[str, Array]:
    """The tensors that a header's table announces; ``read`` gives that many bytes."""
    tensors: dict[str, Array] = {}
    for row in table:
        dtype, shape = numpy_dtype(row["dtype"]), tuple(int(n) for n in row["shape"])
        data = read(math.prod(shape) * dtype.itemsize)
        tensors[row["name"]] = np.frombuffer(data, dtype).reshape(shape)
    return tensors


def read_frame(read: Callable[[int], bytes]) -> Frame:
    """One frame; ``read`` gives that many bytes, and raises EOFError where they do not come."""
    (length,) = _LENGTH.unpack(read(_LENGTH.size))
    header = json.loads(read(length))
    return header, decode_tensors(header.pop("tensors", []), read)


def requests(descriptor: int) -> Iterator[Frame]:
    """Frames of a pipe until the other side closes it: what an engine's process serves."""
    while True:
        try:
            yield read_frame(lambda count: read_exactly(descriptor, count))
        except EOFError:
            return


def read_exactly(descriptor: int, count: int, deadline: float | None = None) -> bytes:
    """Read ``count`` bytes of a pipe.

    Raises:
        EOFError: The other side closed it.
        HungError: ``deadline`` (of ``time.monotonic``) passed.
    """
    parts = bytearray()
    while len(parts) < count:
        if deadline is not None:
            _await(descriptor, selectors.EVENT_READ, deadline)
        piece = os.read(descriptor, min(_PIECE, count - len(parts)))
        if not piece:
            raise EOFError(f"{len(parts)} of {count} bytes came")
        parts += piece
    return bytes(parts)


def write_all(descriptor: int, pieces: list[bytes | memoryview], deadline: float | None = None) -> None:
    """Write pieces to a pipe; one with a deadline must be non-blocking.

    Raises:
        BrokenPipeError: The other side closed it.
        HungError: ``deadline`` passed.
    """
    for piece in pieces:
        rest = memoryview(piece)
        while rest:
            if deadline is not None:
                _await(descriptor, selectors.EVENT_WRITE, deadline)
            try:
                rest = rest[os.write(descriptor, rest[:_PIECE]) :]
            except BlockingIOError:
                continue


def _await(descriptor: int, event: int, deadline: float) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, event)
        if not selector.select(max(deadline - time.monotonic(), 0)):
            raise HungError
