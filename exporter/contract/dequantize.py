"""Checkpoints with quantised weights: what their config says, and how transformers is asked for dense weights.

What is exported and what it is compared with are the dense weights that transformers makes of them on a CPU. Rounding
of activations, which some schemes add on a GPU, is no part of either.
"""

from __future__ import annotations

from typing import Any

__all__ = ["ask_dense", "make_dense", "quantization_of"]

_TAKE_DEQUANTIZE = ("compressed-tensors", "fp8", "metal", "mxfp4", "mxfp8")
_DENSE = ("float16", "float32", "float64", "bfloat16")


def quantization_of(config: Any) -> dict[str, Any] | None:
    """What a transformers config says of quantised weights; None where they are dense."""
    found = getattr(config, "quantization_config", None)
    if found is None or isinstance(found, dict):
        return found or None
    return dict(found.to_dict())


def ask_dense(config: Any) -> None:
    """Make ``from_pretrained`` with this config give dense weights, on machines with a GPU too."""
    settings = quantization_of(config)
    if settings is not None and settings.get("quant_method") in _TAKE_DEQUANTIZE:
        config.quantization_config = {**settings, "dequantize": True}


def make_dense(model: Any, dtype: Any) -> Any:
    """Unpack a loaded model whose weights are still packed, such as bitsandbytes'.

    Raises:
        NotImplementedError: transformers cannot unpack it.
    """
    if all(str(parameter.dtype).removeprefix("torch.") in _DENSE for parameter in model.parameters()):
        return model
    return model.dequantize(dtype).to(dtype)
