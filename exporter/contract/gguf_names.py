"""Names of GGUF tensors that transformers' reader looks for without their ending, and so never finds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["whole_names"]

_BARE = ("layer_output_scale",)  # transformers' layer_scalar, a parameter without an ending


@contextmanager
def whole_names() -> Iterator[Any]:
    """Give transformers' function from a model to its GGUF names, which finds these too while the block runs."""
    from transformers import modeling_gguf_pytorch_utils as loader

    plain = loader.get_gguf_hf_weights_map

    def found(*arguments: Any, **named: Any) -> dict[str, str]:
        names = plain(*arguments, **named)
        return {f"{name}.weight" if name.endswith(_BARE) else name: other for name, other in names.items()}

    loader.get_gguf_hf_weights_map = found
    try:
        yield found
    finally:
        loader.get_gguf_hf_weights_map = plain
