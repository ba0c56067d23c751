"""Reads the tensors of a GGUF file one at a time, as transformers would load them, in blocks of rows.

Names and the arithmetic that undoes llama.cpp's layout are transformers' own; only reading is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvparity.exporter.checkpoint.gguf_head import GgufTensor, gguf_tensors

__all__ = ["gguf_parts"]

Array = npt.NDArray[Any]
_BLOCK = 1 << 22  # elements of one block: 16 MB of float32, and gguf's unpacking takes about four times that


def gguf_parts(path: Path, meta_model: Any) -> Mapping[str, Callable[[], Iterator[Array]]]:
    """How to read each tensor of a GGUF file.

    Args:
        path: The file.
        meta_model: The model without weights; its names decide what the file's are called.

    Returns:
        Blocks of rows, float32 in transformers' layout, by transformers' parameter name. Empty for architectures
        whose tensors transformers splits, merges or reads in another way: such a file must be loaded whole.
    """
    from transformers import modeling_gguf_pytorch_utils as loader
    from transformers.integrations.gguf import is_gguf_arch_supported, read_gguf_metadata

    architecture = read_gguf_metadata(str(path))[0]["general.architecture"]
    kind = loader.TENSOR_PROCESSORS.get(architecture, loader.TensorProcessor)
    if is_gguf_arch_supported(architecture) or _merges(kind, loader.TensorProcessor):
        return {}
    processor = kind(config=meta_model.config.to_dict())
    names = loader.get_gguf_hf_weights_map(meta_model, processor)
    stored = gguf_tensors(path)
    return {names[name]: _reader(name, tensor, processor) for name, tensor in stored.items() if name in names}


def _merges(kind: Any, plain: Any) -> bool:
    """Whether one parameter is made of several tensors."""
    return kind.perform_fallback_tensor_mapping is not plain.perform_fallback_tensor_mapping


def _reader(name: str, tensor: GgufTensor, processor: Any) -> Callable[[], Iterator[Array]]:
    from gguf import dequantize

    rows = tensor.rows

    def restored(weights: Array) -> Array:
        arguments: dict[str, Any] = {"tensor_key_mapping": {}, "parsed_parameters": {}}
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
