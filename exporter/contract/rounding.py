"""Activations rounded to eight bits as ONNX Runtime rounds them, in PyTorch: part of what some bundles compute.

``--quantize int8-dynamic`` has one scale per call (ONNX's DynamicQuantizeLinear), ``--accuracy-level 4`` one per row
and block of columns (MatMulNBits; ONNX Runtime's mlas/lib/sqnbitgemm*: the largest number of a block is 127 steps).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kvparity.exporter.contract.blocks import Blocks

__all__ = ["Rounding", "round_inputs", "rounded", "rounded_blocks", "rounding_of"]


@dataclass(frozen=True, eq=False)
class Rounding:
    """How what a linear layer is given is rounded.

    Attributes:
        block_size: Columns that share a scale; None for one scale per call.
        minima: (rows, blocks) of the weight, which multiply sums that are not rounded; None without.
    """

    block_size: int | None
    minima: Tensor | None = None


def rounding_of(blocks: Blocks, columns: int, quantize: str) -> Rounding:
    """The rule for a quantised weight of so many columns in a bundle that rounds activations."""
    if quantize == "int8-dynamic":
        return Rounding(None)
    minima = None if blocks.minima is None else torch.from_numpy(np.array(blocks.minima, np.float32))
    return Rounding(blocks.block_size(columns), minima)


def rounded(x: Tensor) -> Tensor:
    """What ``(DynamicQuantizeLinear(x) - zero point) x scale`` gives: 256 steps from least to largest number."""
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.round(-low / scale).clamp(0, 255)
    return ((torch.round(x / scale) + zero).clamp(0, 255) - zero) * scale


def rounded_blocks(x: Tensor, size: int) -> Tensor:
    """(..., columns) as MatMulNBits at accuracy level 4 takes it: 127 steps from 0 to the largest of a block."""
    blocks = x.float().unflatten(-1, (-1, size))
    largest = blocks.abs().amax(-1, keepdim=True)
    codes = torch.round(blocks * torch.where(largest == 0, 0, 127 / largest))
    return (codes * (largest / 127)).flatten(-2).to(x.dtype)


def round_inputs(model: Any, rules: Iterable[tuple[Tensor, Rounding]]) -> None:
    """Let the linear layers that have these weights round what they are given; a tied head counts as its table."""
    chosen = {id(weight): rule for weight, rule in rules}
    for module in model.modules():
        if isinstance(module, nn.Linear) and id(module.weight) in chosen:
            module.forward = partial(_forward, module, chosen[id(module.weight)])


def _forward(module: nn.Linear, rule: Rounding, x: Tensor) -> Tensor:
    if rule.block_size is None:
        return nn.functional.linear(rounded(x), module.weight, module.bias)
    near = rounded_blocks(x, rule.block_size)
    product = nn.functional.linear(near, module.weight, module.bias)
    if rule.minima is None:
        return product
    sums = (near - x).unflatten(-1, (-1, rule.block_size)).sum(-1)
    return product + nn.functional.linear(sums, rule.minima.to(x.dtype))
