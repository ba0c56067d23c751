"""Short convolutions and recurrences of a traced model: our functions in the place of its own.

transformers writes them as functions of a modelling file (``causal_conv1d_fn``, ``torch_chunk_gated_delta_rule`` …),
whose Python loops over chunks and tokens cannot be traced for any length. While a model is traced those names stand
for the functions below, each of which is one torch operator; :mod:`exporter.trace.onnx_states` writes the operators in
ONNX. What a layer keeps from call to call goes through the cache (:mod:`exporter.model.layouts`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

__all__ = ["causal_conv", "use_states"]


@dataclass(frozen=True, eq=False)
class _Call:
    """The call that is traced: which tokens are live, and whether there are few."""

    live: Tensor
    few: bool


_CALL: ContextVar[_Call] = ContextVar("call")


@torch.library.custom_op("kvparity::causal_conv", mutates_args=())
def causal_conv(window: Tensor, weight: Tensor, bias: Tensor | None, few: bool) -> Tensor:
    """Causal depthwise convolution.

    Args:
        window: (batch, channels, kernel - 1 + sequence): the inputs before the call's, and the call's.
        weight: (channels, kernel).
        bias: (channels,).
        few: Whether a call has mostly one token; says how to write it, not what it computes.

    Returns:
        (batch, channels, sequence).
    """
    return torch.nn.functional.conv1d(window, weight[:, None], bias, groups=weight.shape[0])


@causal_conv.register_fake
def _(window: Tensor, weight: Tensor, bias: Tensor | None, few: bool) -> Tensor:
    batch, channels, columns = window.shape
    return window.new_empty((batch, channels, columns - (weight.shape[1] - 1)))


def _convolve(
    hidden_states: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, **_: Any
) -> Tensor:
    """``causal_conv1d_fn`` on what our cache's ``update_conv_state`` gives: the call's columns only."""
    from transformers.activations import ACT2FN

    output = causal_conv(hidden_states, weight, bias, _CALL.get().few)
    return output if activation is None else ACT2FN[activation](output)


def _live_tokens(*_: Any, **__: Any) -> Tensor:
    """``create_recurrent_attention_mask``: which of the call's tokens are no padding, (batch, sequence)."""
    return _CALL.get().live


_OURS: dict[str, Callable[..., Any]] = {
    "causal_conv1d_fn": _convolve,
    "create_recurrent_attention_mask": _live_tokens,
}


@contextmanager
def use_states(model: Any, live: Tensor, *, few: bool) -> Iterator[None]:
    """Put our functions into the modelling files of a model, and take them out again.

    Args:
        model: transformers' model.
        live: (batch, sequence) int64: 0 on padding, which must leave no trace in a state.
        few: Whether a call has mostly one token.
    """
    replaced = [
        (module, name, getattr(module, name)) for module in _files(model) for name in _OURS if hasattr(module, name)
    ]
    token = _CALL.set(_Call(live, few))
    try:
        for module, name, _ in replaced:
            setattr(module, name, _OURS[name])
        yield
    finally:
        for module, name, original in replaced:
            setattr(module, name, original)
        _CALL.reset(token)


def _files(model: Any) -> list[ModuleType]:
    """The Python modules that a model's modules are written in, transformers' own only."""
    names = dict.fromkeys(type(module).__module__ for module in model.modules())
    return [sys.modules[name] for name in names if name.startswith("transformers.")]
