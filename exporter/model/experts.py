"""Mixture-of-experts layers as plain matrix products, through transformers' experts interface.

transformers' loop over the experts that were hit cannot be traced. Of its other forms, one gathers the weights of each
token's experts: right for a decode step, but a prefill of 512 tokens over Gemma 4 26B-A4B would gather 65 GB. So a
prefill multiplies by every expert and weights the results, and a decode step gathers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kvparity.exporter.contract.spec import PREFILL, GraphKind

__all__ = ["ALL_EXPERTS", "CHOSEN_EXPERTS", "choose_experts", "register_experts"]

ALL_EXPERTS = "kvparity_all_experts"
CHOSEN_EXPERTS = "batched_mm"  # transformers' own


def all_experts(module: Any, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Every token through every expert, weighted by the router; an expert that was not chosen has weight 0.

    Args:
        module: transformers' experts module: its weights, layout flags and gate.
        hidden: (tokens, hidden).
        top_k_index: (tokens, k) int64.
        top_k_weights: (tokens, k).

    Returns:
        (tokens, hidden).
    """
    first = "gate_up_proj" if module.has_gate else "up_proj"
    inner = _each(module, first, hidden[None])
    inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
    outer = _each(module, "down_proj", inner)
    if module.has_post_expert_norm:
        outer = module.post_expert_norm(outer)
    experts = torch.arange(outer.shape[0], device=hidden.device)
    chosen = (top_k_index[..., None] == experts).to(top_k_weights.dtype)
    weights = (chosen * top_k_weights[..., None]).sum(dim=1).transpose(0, 1)
    return (outer * weights[..., None].to(outer.dtype)).sum(dim=0)


def _each(module: Any, name: str, inputs: Tensor) -> Tensor:
    """``inputs`` (1 or experts, tokens, in) through one projection of every expert: (experts, tokens, out)."""
    weight = getattr(module, name)
    product = torch.matmul(inputs, weight if module.is_transposed else weight.transpose(1, 2))
    return product + getattr(module, f"{name}_bias")[:, None, :] if module.has_bias else product


def register_experts() -> None:
    """Make :data:`ALL_EXPERTS` known to transformers; called when a model is built for tracing."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(ALL_EXPERTS, all_experts)


def choose_experts(model: Any, kind: GraphKind) -> None:
    """Set how a model's experts are computed in one graph; nothing for a model without experts."""
    register_experts()
    model.set_experts_implementation(ALL_EXPERTS if kind == PREFILL else CHOSEN_EXPERTS)
