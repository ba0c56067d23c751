"""A name for a value: a custom operator, traced as a node that becomes the ONNX value's name."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["probe"]


@torch.library.custom_op("kvparity::probe", mutates_args=())
def probe(value: Tensor, name: str) -> Tensor:
    """Name a value."""
    return value.clone()


@probe.register_fake
def _(value: Tensor, name: str) -> Tensor:
    return torch.empty_like(value)
