"""Reads the tensors of a GGUF file one at a time, as transformers would load them, in blocks of rows.

Names and the arithmetic that undoes llama.cpp's layout are transformers' own; only reading is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvparity.exporter.checkpoint.gguf_file import GgufFile, GgufTensor, read_gguf
from kvparity.exporter.contract.errors import ExportError
from kvparity.exporter.contract.gguf_loading import whole_gguf

__all__ = ["check_gguf", "gguf_names", "gguf_parts"]

Array = npt.NDArray[Any]
_BLOCK = 1 << 22  # elements of one block: 16 MB of float32, and gguf's unpacking takes about four times that
_CONFIG = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")  # the config has them


def gguf_parts(path: Path, meta_model: Any) -> Mapping[str, Callable[[], Iterator[Array]]]:
    """How to read each tensor of a GGUF file.

    Args:
        path: The file.
        meta_model: The model without weights; its names decide what the file's are called.

    Returns:
        Blocks of rows, float32 in transformers' layout, by transformers' parameter name. Empty for architectures
        whose tensors transformers splits, merges or reads in another way: such a file must be loaded whole.

    Raises:
        ExportError: The file has tensors that the model does not, or lacks some.
    """
    from transformers import modeling_gguf_pytorch_utils as loader

    file = read_gguf(path)
    check_gguf(file, meta_model)
    kind = loader.TENSOR_PROCESSORS.get(file.architecture, loader.TensorProcessor)
    if _is_new(file.architecture) or _merges(kind, loader.TensorProcessor):
        return {}
    processor, names = gguf_names(file, meta_model)
    return {names[name]: _reader(name, tensor, processor) for name, tensor in file.tensors.items() if name in names}


def gguf_names(file: GgufFile, meta_model: Any) -> tuple[Any, dict[str, str]]:
    """What undoes llama.cpp's layout of a tensor, and transformers' parameter name of each of llama.cpp's."""
    from transformers import modeling_gguf_pytorch_utils as loader

    kind = loader.TENSOR_PROCESSORS.get(file.architecture, loader.TensorProcessor)
    processor = kind(config=meta_model.config.to_dict())
    with whole_gguf() as names_of:
        return processor, names_of(meta_model, processor)


def check_gguf(file: GgufFile, meta_model: Any) -> None:
    """Refuse a file whose tensors are not those of the model that its keys describe.

    transformers skips what it has no name for, and draws at random what is not there.

    Raises:
        ExportError: Names the first of them.
    """
    if _is_new(file.architecture):  # its names go through patterns; loading reports what is missing
        wanted = sum(parameter.numel() for parameter in meta_model.parameters())
        held = sum(int(np.prod(tensor.shape)) for tensor in file.tensors.values())
        if wanted > held:
            raise ExportError(
                f"{file.name}: holds {held:,} numbers, and the model that its keys describe {wanted:,}; fetch it again"
            )
        return
    names = gguf_names(file, meta_model)[1]
    names |= {f"{name}.weight": other for name, other in names.items()}  # experts of a layer stand without the ending
    strange = [name for name in file.tensors if name not in names and not _is_of_config(name)]
    if strange:
        raise ExportError(
            f"{file.name}: its tensor {strange[0]} ({len(strange)} such) is of no part of transformers' "
            f"{type(meta_model).__name__}, and without it the logits would be another model's"
        )
    found = {names[name] for name in file.tensors if name in names}
    absent = [name for name, others in _parameters(meta_model).items() if not found & {name, *others}]
    if absent:
        raise ExportError(
            f"{file.name}: has no tensor for {absent[0]} ({len(absent)} missing of {len(found) + len(absent)}); "
            "fetch the whole file"
        )


def _parameters(model: Any) -> dict[str, tuple[str, ...]]:
    """Every tensor of a checkpoint by name, with the other names that it is tied to."""
    from kvparity.exporter.checkpoint.weight_names import weight_names

    return {weight.name: weight.aliases for weight in weight_names(model)}


def _is_of_config(name: str) -> bool:
    return name in _CONFIG or "attn_rot_embd" in name  # the latter is of llama.cpp's first files, which skips it


def _is_new(architecture: str) -> bool:
    from transformers.integrations.gguf import is_gguf_arch_supported

    return bool(is_gguf_arch_supported(architecture))


def _merges(kind: Any, plain: Any) -> bool:
    """Whether one parameter is made of several tensors."""
    return kind.perform_fallback_tensor_mapping is not plain.perform_fallback_tensor_mapping


def _reader(name: str, tensor: GgufTensor, processor: Any) -> Callable[[], Iterator[Array]]:
    from gguf import dequantize

    rows = tensor.rows

    def restored(weights: Array) -> Array:
        arguments: dict[str, Any] = {"tensor_key_mapping": {}, "parsed_parameters": {"tensors": {}}}
        return processor.process(weights=weights, name=name, **arguments).weights

    def is_kept() -> bool:
        """Whether the processor leaves this tensor as it is, so that blocks of it can be read by themselves."""
        whole = np.broadcast_to(np.float32(0), (len(rows), *dequantize(rows[:1], tensor.kind).shape[1:]))
        return restored(whole) is whole

    def read() -> Iterator[Array]:
        step = max(1, _BLOCK // max(1, 2 * int(np.prod(rows.shape[1:]))))
        if rows.ndim < 2 or len(rows) <= step or not is_kept():
            yield restored(dequantize(rows, tensor.kind))
            return
        for start in range(0, len(rows), step):
            yield dequantize(rows[start : start + step], tensor.kind)

    return read
