"""Files that hold named arrays: ``.npz``, safetensors, or a folder of ``.npy`` and raw files; never a pickle."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kvparity.exporter.contract.bundle import inside
from kvparity.exporter.contract.dtypes import numpy_dtype
from kvparity.exporter.contract.errors import KvparityError, TraceError
from kvparity.exporter.contract.head import Stored, stored_tensors
from kvparity.runners.base import Array

__all__ = ["INDEX", "Recording", "open_recording"]

INDEX = "trace.json"  # in a folder: what made it, and what raw files hold
_DTYPES = ("float16", "bfloat16", "float32", "float64", "int8", "int32", "int64", "bool")


@dataclass(frozen=True)
class Recording:
    """Named arrays of one file or folder, each read when it is asked for.

    Attributes:
        file: Its name, for messages.
        readers: By key: what reads it.
        engine: What made it.
        case: The case of keys that name none, where the recording says so.
        closing: Frees the file.
    """

    file: str
    readers: Mapping[str, Callable[[], Any]]
    engine: str = "unknown"
    case: str | None = None
    closing: Callable[[], None] = lambda: None

    def read(self, key: str) -> Array:
        """One array.

        Raises:
            TraceError: It is unreadable, or no array.
        """
        try:
            value = self.readers[key]()
        except KvparityError:
            raise
        except Exception as error:  # a foreign file: numpy, zipfile and zlib each have exceptions of their own
            raise TraceError(f"{self.file}: {key} is unreadable ({_reason(error)})") from error
        if not isinstance(value, np.ndarray):
            raise TraceError(f"{self.file}: {key} is no array; write the file with numpy.savez, or as its format")
        if value.dtype.kind == "V" and value.dtype.itemsize == 2:
            return value.view(numpy_dtype("bfloat16"))
        return value


def open_recording(path: Path) -> Recording:
    """Open a recording by what it is: a folder, a ``.safetensors`` file, else an ``.npz``.

    Raises:
        TraceError: It is not readable as that; the message says why.
    """
    if path.is_dir():
        return _folder(path)
    return _safetensors(path) if path.suffix == ".safetensors" else _npz(path)


def _npz(path: Path) -> Recording:
    try:
        file = np.load(path, allow_pickle=False)
        names = list(file.files)
    except Exception as error:
        raise TraceError(f"{path.name}: not a readable .npz trace ({_reason(error)})") from error
    made = Recording(path.name, {name: partial(file.__getitem__, name) for name in names}, closing=file.close)
    engine = " ".join(map(str, made.read("engine").ravel())) if "engine" in names else "unknown"
    return Recording(path.name, {k: v for k, v in made.readers.items() if k != "engine"}, engine, closing=file.close)


def _safetensors(path: Path) -> Recording:
    try:
        with path.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            said = json.loads(stream.read(size) if size < path.stat().st_size else b"").get("__metadata__", {})
        stored = stored_tensors([path])
    except (OSError, ValueError, AttributeError, KvparityError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its header is damaged"
        raise TraceError(f"{path.name}: not a readable safetensors trace ({reason})") from error
    readers = {name: partial(_stored, item) for name, item in stored.items()}
    return Recording(path.name, readers, str(said.get("engine", "unknown")), said.get("case"))


def _stored(item: Stored) -> Array:
    return np.array(item.array()) if 0 not in item.shape else np.zeros(item.shape, np.float32)


def _folder(path: Path) -> Recording:
    index = _index(path)
    readers: dict[str, Callable[[], Any]] = {
        file.relative_to(path).as_posix().removesuffix(".npy"): partial(np.load, file, allow_pickle=False)
        for file in sorted(path.rglob("*.npy"))
    }
    tensors = index.get("tensors", {})
    for key, entry in tensors.items():
        try:
            file = inside(path, entry["file"])
            dtype, shape = str(entry["dtype"]), tuple(map(int, entry["shape"]))
        except (KeyError, TypeError, ValueError, KvparityError) as error:
            raise TraceError(
                f"{path.name}: {INDEX}: {key} needs file (inside the folder), dtype and shape; found {entry}"
            ) from error
        readers[key] = partial(_raw, path.name, file, key, dtype, shape)
    known = {str(entry["file"]) for entry in tensors.values()}
    for file in sorted(path.rglob("*.bin")):
        if file.relative_to(path).as_posix() not in known:
            raise TraceError(
                f"{path.name}: {file.relative_to(path)} has no entry in {INDEX}, which gives dtype and shape"
            )
    if not readers:
        raise TraceError(f"{path.name}: holds no .npy file, and no {INDEX} that names raw ones")
    return Recording(path.name, readers, str(index.get("engine", "unknown")), index.get("case"))


def _index(path: Path) -> dict[str, Any]:
    file = path / INDEX
    if not file.is_file():
        return {}
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TraceError(f"{path.name}: {INDEX} is not readable JSON ({error})") from error
    if not isinstance(data, dict) or not isinstance(data.get("tensors", {}), dict):
        raise TraceError(f"{path.name}: {INDEX} has to be an object with engine, case and tensors")
    return data


def _raw(file: str, path: Path, key: str, dtype: str, shape: tuple[int, ...]) -> Array:
    """An array that is a file without a header: little endian, last axis fastest."""
    if dtype not in _DTYPES:
        raise TraceError(f"{file}: {key} is of dtype {dtype!r}; known are {', '.join(_DTYPES)}")
    kind, data = numpy_dtype(dtype), path.read_bytes()
    size = math.prod(shape) * kind.itemsize
    if len(data) != size or min(shape, default=0) < 0:
        raise TraceError(f"{file}: {key} has {len(data)} bytes, expected {size} for {dtype} {list(shape)}")
    return np.frombuffer(data, kind).reshape(shape)


def _reason(error: Exception) -> str:
    """Why a file cannot be read, without numpy's advice to unpickle it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if "pickle" in str(error):
        return "it holds Python objects, which are never read; save numbers only"
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "it is damaged")[:200]
