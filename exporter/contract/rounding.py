"""Activations rounded to eight bits as ONNX's DynamicQuantizeLinear does it, in PyTorch: one scale per call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["round_inputs", "rounded"]


def rounded(x: Tensor) -> Tensor:
    """What ``(DynamicQuantizeLinear(x) - zero point) x scale`` gives: 256 steps from least to largest number."""
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.round(-low / scale).clamp(0, 255)
    return ((torch.round(x / scale) + zero).clamp(0, 255) - zero) * scale


def round_inputs(model: Any, names: Iterable[str]) -> None:
    """Let the linear layers whose weights are named round what they are given; a tied head counts as its table."""
    tensors = dict(model.named_parameters(remove_duplicate=False))
    chosen = {id(tensors[name]) for name in names if name in tensors}
    for module in model.modules():
        if isinstance(module, nn.Linear) and id(module.weight) in chosen:
            module.register_forward_pre_hook(_hook)


def _hook(_module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (rounded(inputs[0]), *inputs[1:])
