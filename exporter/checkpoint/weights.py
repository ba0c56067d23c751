"""Puts a model's weights into a bundle as safetensors, one copy, and says where each tensor lies.

An ONNX external tensor may point into a safetensors file, so the checkpoint's own file is used as it is wherever its
names, shapes and dtype fit; otherwise tensors are converted and written one at a time.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvparity.exporter.checkpoint.folder import INDEX, WEIGHTS, text_name, text_names
from kvparity.exporter.checkpoint.half_types import refuse_overflow
from kvparity.exporter.checkpoint.quantized import refuse_uneven_blocks
from kvparity.exporter.checkpoint.source import Checkpoint, StoredTensor, read_safetensors_header
from kvparity.exporter.checkpoint.weight_names import WeightName, weight_names
from kvparity.exporter.contract.dtypes import numpy_dtype
from kvparity.exporter.contract.errors import ExportError
from kvparity.exporter.contract.files import copy_file
from kvparity.exporter.contract.placement import Placement

__all__ = ["place_weights", "write_safetensors"]

_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64"}
_ALIGN = 64
_BLOCK = 1 << 23  # elements converted at once
Array = npt.NDArray[Any]
Parts = Callable[[], Iterator[Array]]  # blocks of a tensor's rows, in order


def place_weights(checkpoint: Checkpoint, meta_model: Any, folder: Path) -> dict[str, Placement]:
    """Copy or convert the weights into ``folder``, a block of a tensor at a time.

    Args:
        checkpoint: Where they come from.
        meta_model: The model without weights, which says what the graphs need, and in which dtype.
        folder: The bundle being written.

    Returns:
        Canonical name to placement.

    Raises:
        ExportError: A weight is missing or has another shape; the disk is full.
    """
    wanted = weight_names(meta_model)
    packed = checkpoint.quantization()
    if packed is not None:
        refuse_uneven_blocks(checkpoint.stored(), packed, checkpoint.source)
        return _from_loaded(checkpoint, wanted, folder)
    stored = text_names(checkpoint.stored())
    renamed = stored.keys() != checkpoint.stored().keys()
    found = {weight.name: _find(weight, stored) for weight in wanted}
    dtypes = {weight.name: weight.dtype for weight in wanted}
    try:
        if all(tensor is not None for tensor in found.values()):
            tensors = {name: tensor for name, tensor in found.items() if tensor is not None}
            _refuse_packed(tensors)
            if not renamed and all(tensor.dtype == dtypes[name] for name, tensor in tensors.items()):
                return _use_files(tensors, checkpoint.stored(), folder)
            return _write(folder, {n: (t.shape, _reader(t)) for n, t in tensors.items()}, dtypes)
        parts = _from_gguf(checkpoint, meta_model, wanted)
        if parts is not None:
            return _write(folder, parts, dtypes)
        return _from_loaded(checkpoint, wanted, folder)
    except OSError as error:
        raise ExportError(f"{folder.parent}: weights cannot be written ({error.strerror or error})") from error


def _find(weight: WeightName, stored: Mapping[str, StoredTensor]) -> StoredTensor | None:
    for name in (weight.name, *weight.aliases):
        tensor = stored.get(text_name(name))
        if tensor is not None:
            if tensor.shape != weight.shape:
                raise ExportError(
                    f"{tensor.file.name}: {name} has shape {tensor.shape}, the config asks {weight.shape}"
                )
            return tensor
    return None


def _refuse_packed(tensors: Mapping[str, StoredTensor]) -> None:
    """Refuse numbers that are no weights by themselves, such as codes whose scales the config does not explain."""
    for name, tensor in tensors.items():
        if tensor.dtype in ("float32", "float16", "bfloat16", "float64", "int64"):
            continue
        raise ExportError(
            f"{tensor.file.name}: {name} holds {tensor.dtype}, and config.json has no quantization_config that says "
            "how to make weights of it; restore that, or dequantise the checkpoint first"
        )


def _use_files(
    tensors: Mapping[str, StoredTensor], stored: Mapping[str, StoredTensor], folder: Path
) -> dict[str, Placement]:
    """Take the checkpoint's files as they are; of several, with an index, so that transformers loads the bundle too."""
    files = sorted({tensor.file for tensor in tensors.values()})
    for file in files:
        copy_file(file, folder / file.name)  # never a link: ONNX's checker and engines refuse linked weights
    if [file.name for file in files] != [WEIGHTS]:
        places = {name: tensor.file.name for name, tensor in sorted(stored.items()) if tensor.file in files}
        text = json.dumps({"metadata": {}, "weight_map": places}, indent=1)
        (folder / INDEX).write_text(text + "\n", encoding="utf-8")
    return {n: Placement(t.file.name, t.offset, t.length, t.dtype, t.shape) for n, t in tensors.items()}


def _from_gguf(
    checkpoint: Checkpoint, meta_model: Any, wanted: tuple[WeightName, ...]
) -> dict[str, tuple[tuple[int, ...], Parts]] | None:
    """Readers of a GGUF file's tensors, or None where they can't be read one at a time."""
    if checkpoint.gguf is None:
        return None
    from kvparity.exporter.checkpoint.gguf_tensors import gguf_parts

    stored = gguf_parts(checkpoint.folder / checkpoint.gguf, meta_model)
    parts: dict[str, tuple[tuple[int, ...], Parts]] = {}
    for weight in wanted:
        name = next((name for name in (weight.name, *weight.aliases) if name in stored), None)
        if name is None:
            return None
        parts[weight.name] = (weight.shape, stored[name])
    return parts


def _from_loaded(checkpoint: Checkpoint, wanted: tuple[WeightName, ...], folder: Path) -> dict[str, Placement]:
    """Checkpoints whose layout transformers converts while loading; the one route that holds the model."""
    import torch

    kinds = {weight.dtype for weight in wanted} & _CODES.keys()
    dtype = next(iter(kinds - {"float32"}), "float32")  # of half types some weights may stay float32
    state = checkpoint.load(getattr(torch, dtype)).state_dict()
    state = text_names(state)
    parts: dict[str, tuple[tuple[int, ...], Parts]] = {}
    for weight in wanted:
        tensor = state.get(text_name(weight.name))
        if tensor is None or tuple(tensor.shape) != weight.shape:
            found = "absent" if tensor is None else f"of shape {tuple(tensor.shape)}"
            raise ExportError(f"{checkpoint.source}: weight {weight.name} is {found}, expected {weight.shape}")
        parts[weight.name] = (weight.shape, _of_tensor(tensor))
    return _write(folder, parts, {weight.name: weight.dtype for weight in wanted})


def _of_tensor(tensor: Any) -> Parts:
    return lambda: iter([(tensor.detach().float() if tensor.is_floating_point() else tensor.detach()).numpy()])


def _reader(tensor: StoredTensor) -> Parts:
    kind = numpy_dtype(tensor.dtype)

    def read() -> Iterator[Array]:
        for start in range(0, tensor.length // kind.itemsize, _BLOCK):
            count = min(_BLOCK, tensor.length // kind.itemsize - start)
            yield np.fromfile(tensor.file, kind, count, offset=tensor.offset + start * kind.itemsize)

    return read


def cast_array(array: Array, dtype: str) -> Array:
    """Convert to a dtype of :data:`_CODES`, rounding to nearest even."""
    return array.astype(numpy_dtype(dtype), copy=False)


def _write(
    folder: Path, parts: Mapping[str, tuple[tuple[int, ...], Parts]], dtypes: Mapping[str, str]
) -> dict[str, Placement]:
    path = folder / "model.safetensors"
    write_safetensors(path, parts, dtypes)
    header = read_safetensors_header(path)
    return {n: Placement(path.name, t.offset, t.length, t.dtype, t.shape) for n, t in header.items()}


def write_safetensors(
    path: Path, parts: Mapping[str, tuple[tuple[int, ...], Parts]], dtypes: Mapping[str, str]
) -> None:
    """Write a safetensors file one block at a time; the library's own writer needs all tensors in memory.

    Args:
        path: File to write.
        parts: Name to (shape, function that gives its elements in order, in arrays of any size and dtype).
        dtypes: dtype of each.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (shape, _) in sorted(parts.items(), key=lambda item: (-numpy_dtype(dtypes[item[0]]).itemsize, item[0])):
        dtype = dtypes[name]
        if dtype not in _CODES:
            raise ExportError(f"{name} is {dtype}; a bundle's weights are {', '.join(_CODES)}")
        length = int(np.prod(shape, dtype=np.int64)) * numpy_dtype(dtype).itemsize
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [offset, offset + length]}
        offset += length
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGN)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for name in header:
            if name not in parts:
                continue
            (shape, read), dtype = parts[name], dtypes[name]
            written = 0
            for array in read():
                if array.ndim > 1 and array.shape[1:] != shape[1:]:
                    raise ExportError(f"{path.name}: {name} was made with rows of {array.shape[1:]}, expected {shape}")
                written += array.size
                refuse_overflow(name, array, dtype)
                cast_array(array, dtype).tofile(stream)
            if written != int(np.prod(shape, dtype=np.int64)):
                raise ExportError(f"{path.name}: {name} has {written} elements, expected shape {shape}")
