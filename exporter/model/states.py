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
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from kvparity.exporter.model.layouts.base import LayoutCache

__all__ = ["RULES", "causal_conv", "linear_attention", "modelling_files", "use_states"]


@dataclass(frozen=True, eq=False)
class _Call:
    """The call that is traced: its cache, which of its tokens are live, whether there are few."""

    cache: LayoutCache
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


@torch.library.custom_op("kvparity::linear_attention", mutates_args=())
def linear_attention(
    query: Tensor, key: Tensor, value: Tensor, state: Tensor, decay: Tensor, beta: Tensor | None, heads: int
) -> tuple[Tensor, Tensor]:
    """ONNX's LinearAttention with scale 1: gated where there is no ``beta``, the gated delta rule where there is.

    Args:
        query: (batch, sequence, heads x key_dim).
        key: As query.
        value: (batch, sequence, heads x value_dim).
        state: (batch, heads, key_dim, value_dim) before the call.
        decay: (batch, sequence, heads), or heads x key_dim: the logarithm of what a token leaves of the state.
        beta: (batch, sequence, heads): how much of its value a token puts in the place of what its key reads.
        heads: Of all of them.

    Returns:
        Output (batch, sequence, heads x value_dim), and the state after the call.
    """
    parts = [None if x is None else x.unflatten(2, (heads, -1)) for x in (query, key, value, decay, beta)]
    outputs, state = [], state.clone()
    for token in range(query.shape[1]):
        q, k, v, g, b = (None if x is None else x[:, token, :, :, None] for x in parts)
        assert q is not None
        assert k is not None
        assert v is not None
        assert g is not None
        state, v = state * g.exp(), v.transpose(2, 3)
        if b is not None:
            v = (v - k.transpose(2, 3) @ state) * b
        state = state + k * v
        outputs.append((q.transpose(2, 3) @ state).flatten(1))
    return torch.stack(outputs, 1), state


@linear_attention.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, state: Tensor, decay: Tensor, beta: Tensor | None, heads: int
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(value), torch.empty_like(state)


@torch.library.custom_op("kvparity::selective_scan", mutates_args=())
def selective_scan(
    inputs: Tensor, step: Tensor, rate: Tensor, key: Tensor, query: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Mamba-1: every entry of a channel's state decays by itself (Gu and Dao 2023, equation 2).

    Args:
        inputs: x, (batch, sequence, channels).
        step: dt, as inputs.
        rate: A, (channels, size), negative.
        key: B, (batch, sequence, size).
        query: C, as key.
        state: (batch, channels, size) before the call.

    Returns:
        Output (batch, sequence, channels), and the state after the call.
    """
    outputs, state = [], state.clone()
    for token in range(inputs.shape[1]):
        x, dt, k, q = (each[:, token] for each in (inputs, step, key, query))
        state = state * (dt[..., None] * rate).exp() + (dt * x)[..., None] * k[:, None]
        outputs.append((state @ q[..., None])[..., 0])
    return torch.stack(outputs, 1), state


@selective_scan.register_fake
def _(inputs: Tensor, step: Tensor, rate: Tensor, key: Tensor, query: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(inputs), torch.empty_like(state)


@torch.library.custom_op("kvparity::clamp_several", mutates_args=())
def clamp_several(values: Tensor, mask: Tensor, low: float, high: float) -> Tensor:
    """(batch, sequence, …) clamped, but left as it is where the call is one token that follows others.

    Args:
        values: What to clamp.
        mask: (batch, total): its columns say how many tokens there are, the call's included.
        low: Least value.
        high: Largest value.
    """
    return values.clone() if values.shape[1] == 1 and mask.shape[1] > 1 else values.clamp(low, high)


@clamp_several.register_fake
def _(values: Tensor, mask: Tensor, low: float, high: float) -> Tensor:
    return torch.empty_like(values)


def _gated_delta(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    g: Tensor,
    beta: Tensor,
    use_qk_l2norm_in_kernel: bool = False,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """``torch_chunk_gated_delta_rule``, and ``chunk_kimi_delta_attention`` where ``g`` has a column per key column.

    Args:
        query: (batch, sequence, key heads, key_dim).
        key: As query.
        value: (batch, sequence, heads, value_dim).
        g: (batch, sequence, heads) or (batch, sequence, heads, key_dim).
        beta: (batch, sequence, heads).
        use_qk_l2norm_in_kernel: Whether queries and keys are made unit vectors first.

    Returns:
        (batch, sequence, heads, value_dim), and the state after the call.
    """
    dtype, heads = query.dtype, value.shape[2]
    query, key, value, g, beta = (x.to(torch.float32) for x in (query, key, value, g, beta))
    if use_qk_l2norm_in_kernel:
        query, key = (x * torch.rsqrt((x * x).sum(dim=-1, keepdim=True) + 1e-6) for x in (query, key))
    query, key = (_repeated(x, heads) for x in (query * query.shape[-1] ** -0.5, key))
    output, state = _run(query, key, value, g if g.ndim == 3 else g.flatten(2), beta)
    return output.unflatten(2, (heads, value.shape[3])).to(dtype), state


def _mamba2(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,  # noqa: N803
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    D: Tensor | None = None,  # noqa: N803
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """``mamba2_chunk_scan`` as gated linear attention: C asks, B is the key, dt x the value, dt A the decay.

    transformers clamps dt in this form only; it computes single tokens that follow others in another.

    Args:
        hidden_states: x, (batch, sequence, heads, value_dim).
        dt: (batch, sequence, heads).
        A: (heads,), negative.
        B: (batch, sequence, groups, key_dim).
        C: As B.
        D: (heads,): the share of x that passes by.
        dt_bias: (heads,).
        dt_softplus: Whether dt is made positive.
        dt_limit: Clamp of dt.

    Returns:
        (batch, sequence, heads, value_dim), and the state after the call.
    """
    heads = hidden_states.shape[2]
    dt = dt if dt_bias is None else dt + dt_bias.to(dt.dtype)
    dt = torch.nn.functional.softplus(dt) if dt_softplus else dt
    low, high = (float(limit) for limit in dt_limit)
    dt = dt if (low, high) == (0.0, float("inf")) else _clamped(dt, low, high)
    dt, inputs = dt.float(), hidden_states.float()
    query, key = (_repeated(x.float(), heads) for x in (C, B))
    value = inputs * dt[..., None]
    output, state = _run(query, key, value, dt * A.float(), None)
    output = output.unflatten(2, (heads, value.shape[3]))
    return (output if D is None else output + D[:, None] * inputs), state


def _clamped(dt: Tensor, low: float, high: float) -> Tensor:
    """:func:`clamp_several` where sizes say whether a call is one token that follows others, a choice elsewhere."""
    cache = _CALL.get().cache
    follows = cache.follows()
    if follows is None:
        return clamp_several(dt, cache.inputs["attention_mask"], low, high)
    return torch.where(follows, dt, dt.clamp(low, high))


def _mamba1(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,  # noqa: N803
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    D: Tensor | None = None,  # noqa: N803
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """``mamba_selective_scan``, which starts from zeros in transformers: this goes on from the state.

    Args:
        hidden_states: x, (batch, channels, sequence).
        dt: As x.
        A: (channels, size), negative.
        B: (batch, size, sequence).
        C: As B.
        D: (channels,): the share of x that passes by.
        z: As x: the gate.
        delta_bias: (channels,): of dt.
        delta_softplus: Whether dt is made positive.

    Returns:
        (batch, channels, sequence), and the state after the call.
    """
    dt = dt if delta_bias is None else dt + delta_bias.to(dt.dtype)[:, None]
    dt = torch.nn.functional.softplus(dt) if delta_softplus else dt
    cache = _CALL.get().cache
    state, real = cache.next_state(), cache.real()
    if state is None:
        state = A.new_zeros((hidden_states.shape[0], *A.shape))
    inputs, step, key, query = (x.float().transpose(1, 2) for x in (hidden_states, dt, B, C))
    if real is not None:
        step = step * real.to(step.dtype)[None, :, None]
    output, state = selective_scan(inputs, step, A.float(), key, query, state)
    output = output.transpose(1, 2).to(hidden_states.dtype)
    output = output if D is None else output + hidden_states * D[:, None]
    return (output if z is None else output * torch.nn.functional.silu(z)), state


def _repeated(x: Tensor, heads: int) -> Tensor:
    """(batch, sequence, groups, size) with every group as often as heads share it."""
    share = heads // x.shape[2]
    return x if share == 1 else x[:, :, :, None].expand(-1, -1, -1, share, -1).flatten(2, 3)


def _run(query: Tensor, key: Tensor, value: Tensor, decay: Tensor, beta: Tensor | None) -> tuple[Tensor, Tensor]:
    """:func:`linear_attention` on (batch, sequence, heads, size), from the state that the layer asked the cache for.

    Tokens after a call's end, which graphs of fixed size have, neither decay a state nor write to it.
    """
    cache = _CALL.get().cache
    state, real = cache.asked, cache.real()
    if state is None:
        state = key.new_zeros((key.shape[0], key.shape[2], key.shape[3], value.shape[3]))
    if real is not None:
        real = real.to(decay.dtype)[None, :, None]
        decay, value = decay * real, value * real[..., None]
        beta = None if beta is None else beta * real
    return linear_attention(*(x.flatten(2) for x in (query, key, value)), state, decay, beta, value.shape[2])


RULES: dict[str, Callable[..., Any]] = {
    "chunk_kimi_delta_attention": _gated_delta,
    "mamba2_chunk_scan": _mamba2,
    "mamba_selective_scan": _mamba1,
    "torch_chunk_gated_delta_rule": _gated_delta,
}
_OURS: dict[str, Callable[..., Any]] = {
    "causal_conv1d_fn": _convolve,
    "create_recurrent_attention_mask": _live_tokens,
    **RULES,
}


@contextmanager
def use_states(model: Any, cache: LayoutCache, *, few: bool) -> Iterator[None]:
    """Put our functions into the modelling files of a model, and take them out again.

    Args:
        model: transformers' model.
        cache: Holds the states, and knows which tokens are padding, which must leave no trace in them.
        few: Whether a call has mostly one token.
    """
    files = modelling_files(model)
    replaced = [(file, name, getattr(file, name)) for file in files for name in _OURS if hasattr(file, name)]
    token = _CALL.set(_Call(cache, cache.live(), few))
    try:
        for module, name, _ in replaced:
            setattr(module, name, _OURS[name])
        yield
    finally:
        for module, name, original in replaced:
            setattr(module, name, original)
        _CALL.reset(token)


def modelling_files(model: Any) -> list[ModuleType]:
    """The Python modules that a model's modules are written in, transformers' own only."""
    names = dict.fromkeys(type(module).__module__ for module in model.modules())
    return [sys.modules[name] for name in names if name.startswith("transformers.")]
