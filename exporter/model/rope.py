"""Rotary embeddings (RoPE): tables that a host can compute, and frequencies that depend on the length of the call."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from kvparity.exporter.contract.float64 import lifted
from kvparity.exporter.contract.modules import ropes_by_length
from kvparity.exporter.contract.spec import RopeSpec
from kvparity.exporter.model.complex_pairs import ComplexAsPairs, tables_like

__all__ = ["follow_length", "hook_tables", "rope_specs", "rope_switch", "use_tables"]

_TABLES: ContextVar[Mapping[str, Tensor]] = ContextVar("tables", default=MappingProxyType({}))
_NEAR = 1e-9  # float64 agreement of the formula with the module
Arrangement = Literal["halves", "pairs", "once"]


def rope_specs(model: Any, max_position: int) -> tuple[RopeSpec, ...]:
    """Every rotary table of a model, by layer type.

    Each is checked against the model's own module in float64, up to the last position: tables that depend on the
    length of the text (dynamic scaling, longrope) are not of this form.

    Args:
        model: A causal language model with real buffers.
        max_position: Positions that it has.

    Returns:
        The tables; none where the rotary embedding is not a table of cos and sin of position times frequency.
    """
    found: list[RopeSpec] = []
    for prefix, module in _modules(model):
        layer_types = _layer_types(module)
        for layer_type in layer_types:
            try:
                spec = _spec(module, prefix, layer_type, max_position)
            except Exception:  # a module that takes or gives something else: no table
                spec = None
            if spec is None:
                return ()
            found.append(spec)
    return tuple(found)


def _modules(model: Any) -> list[tuple[str, Any]]:
    """(name, module) of every rotary embedding; the name is empty where there is one."""
    modules = [
        (path.rpartition(".")[2], module)
        for path, module in model.named_modules()
        if type(module).__name__.endswith("RotaryEmbedding")
        and {"x", "position_ids"} <= inspect.signature(module.forward).parameters.keys()
    ]
    return [("", modules[0][1])] if len(modules) == 1 else modules


def _layer_types(module: Any) -> list[str]:
    """Layer types that a module has tables for; one empty name where it makes no difference between layers."""
    if "layer_type" not in inspect.signature(module.forward).parameters:
        return [""]
    names = [name.removesuffix("_inv_freq") for name, _ in module.named_buffers() if name.endswith("_inv_freq")]
    return sorted(name for name in names if not name.endswith("_original"))


def _spec(module: Any, prefix: str, layer_type: str, max_position: int) -> RopeSpec | None:
    """The table of one layer type, or None where no arrangement gives what the module gives."""
    attribute = f"{layer_type}_" if layer_type else ""
    inv_freq = getattr(module, f"{attribute}inv_freq", None)
    if inv_freq is None:
        return None
    scaling = float(getattr(module, f"{attribute}attention_scaling", 1.0))
    positions = torch.tensor([[0, 1, 2, 7, max_position // 2, max_position - 1]])
    with torch.no_grad(), lifted(True), ComplexAsPairs():
        rest = {"layer_type": layer_type} if layer_type else {}
        cos, sin = copy.deepcopy(module)(torch.zeros(1, 1, 1, dtype=torch.float64), positions, **rest)
        angle = positions[..., None].double() * inv_freq.double()
    for arrangement in get_args(Arrangement):
        laid = _lay(angle, arrangement)
        if laid.shape == cos.shape and laid.shape == sin.shape:
            off = max((laid.cos() * scaling - cos).abs().max().item(), (laid.sin() * scaling - sin).abs().max().item())
            if off < _NEAR:
                name = ".".join(filter(None, (prefix, layer_type)))
                return RopeSpec(name, tuple(inv_freq.tolist()), scaling, arrangement)
    return None


def _lay(angle: Tensor, arrangement: Arrangement) -> Tensor:
    if arrangement == "halves":
        return torch.cat([angle, angle], dim=-1)
    return torch.repeat_interleave(angle, 2, dim=-1) if arrangement == "pairs" else angle


def rope_switch(model: Any) -> int | None:
    """Longest call, in positions, that keeps the original frequencies; None where no frequency depends on the length.

    transformers changes the frequencies of two rope types by the last position of a call, for all tokens of the call
    (``dynamic_rope_update`` in its ``modeling_rope_utils.py``): ``longrope`` goes from its short to its long factors,
    ``dynamic`` (NTK scaling) raises the base as the text grows.
    """
    found = (_original(module, *kinds) for module, *kinds in ropes_by_length(model))
    return min(found, default=None)


def _original(module: Any, layer_type: str, rope_type: str) -> int:
    """Positions beyond which the frequencies of a layer type change."""
    if rope_type != "longrope":
        return int(module.original_max_seq_len)
    return int(_parameters(module, layer_type)["original_max_position_embeddings"])


def _parameters(module: Any, layer_type: str) -> Any:
    parameters = module.config.rope_parameters
    return parameters[layer_type] if layer_type else parameters


def follow_length(model: Any) -> None:
    """Make frequencies that depend on the length of a call a function of its positions, without state between calls.

    transformers' own update keeps what it computed on the module and branches on the values of positions, which a
    graph can't. To be called while the buffers are real: the long factors' frequencies become a buffer.

    Args:
        model: A causal language model with real buffers.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    for module, layer_type, rope_type in ropes_by_length(model):
        prefix, rest = (f"{layer_type}_", {"layer_type": layer_type}) if layer_type else ("", {})
        compute, limit = ROPE_INIT_FUNCTIONS[rope_type], _original(module, layer_type, rope_type)
        if rope_type == "longrope":
            long, _ = compute(module.config, seq_len=limit + 1, **rest)
            module.register_buffer(f"{prefix}long_inv_freq", long, persistent=False)
            update = partial(_short_or_long, module, prefix, limit)
        else:
            factor = float(_parameters(module, layer_type)["factor"])
            with lifted(True):
                exact = compute(module.config, **rest)[0].tolist()
            update = partial(_original_or_grown, module, prefix, limit, factor, exact)
        before, after = _updating(layer_type, f"{prefix}inv_freq", update)
        module.register_forward_pre_hook(before, with_kwargs=True)
        module.register_forward_hook(after, always_call=True)
        if layer_type:
            module.rope_type = {**module.rope_type, layer_type: "default"}
        else:
            module.rope_type = "default"


def _short_or_long(module: Any, prefix: str, limit: int, positions: Tensor) -> Tensor:
    """(frequencies,) of a call: those of the short factors up to ``limit`` positions, of the long ones beyond."""
    short, long = getattr(module, f"{prefix}original_inv_freq"), getattr(module, f"{prefix}long_inv_freq")
    return torch.where(positions.max() + 1 > limit, long, short)


def _original_or_grown(
    module: Any, prefix: str, limit: int, factor: float, exact: list[float], positions: Tensor
) -> Tensor:
    """(frequencies,) of a call under dynamic NTK scaling: the original ones up to ``limit`` positions.

    Beyond, the base of n frequencies is multiplied by s^(2n / (2n - 2)), s = 1 + factor (length - limit) / limit, so
    that frequency i is divided by s^(i / (n - 1)): ``_compute_dynamic_ntk_parameters`` of transformers, without Pow.

    Args:
        module: The rotary embedding.
        prefix: Of its attributes.
        limit: Positions that keep the original frequencies.
        factor: Of the scaling.
        exact: The original frequencies in float64.
        positions: (batch, sequence) int64.
    """
    original = getattr(module, f"{prefix}original_inv_freq")
    length = positions.max() + 1
    grown = 1 + torch.relu(length.to(original.dtype) - limit) * (factor / limit)
    shares = torch.tensor([index / max(len(exact) - 1, 1) for index in range(len(exact))], dtype=original.dtype)
    other = torch.tensor(exact, dtype=original.dtype) * torch.exp(-torch.log(grown) * shares)
    return torch.where(length > limit, other, original)


def _updating(
    layer_type: str, name: str, update: Callable[[Tensor], Tensor]
) -> tuple[Callable[..., None], Callable[..., None]]:
    """Hooks that put the frequencies of a call in the place of the module's, and the module's back after it."""
    kept: list[Tensor] = []

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if layer_type in ("", kwargs.get("layer_type", args[2] if len(args) > 2 else None)):
            kept.append(module._buffers[name])
            module._buffers[name] = update(kwargs["position_ids"] if "position_ids" in kwargs else args[1])

    def after(module: Any, *_: Any) -> None:
        if kept:
            module._buffers[name] = kept.pop()

    return before, after


def hook_tables(model: Any) -> None:
    """Make every rotary embedding give the tables in use (see :func:`use_tables`) instead of its own."""
    for prefix, module in _modules(model):
        module.register_forward_hook(_replacing(prefix), with_kwargs=True)


def _replacing(prefix: str) -> Callable[..., Any]:
    def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: tuple[Tensor, Tensor]) -> Any:
        layer_type = kwargs.get("layer_type", args[2] if len(args) > 2 else None)
        name = ".".join(filter(None, (prefix, layer_type)))
        tables = _TABLES.get()
        if RopeSpec.port_of(name, "cos") not in tables:
            return output
        dtype = next(iter(output)).dtype
        return tables_like(output, [tables[RopeSpec.port_of(name, part)].to(dtype) for part in ("cos", "sin")])

    return hook


@contextmanager
def use_tables(inputs: Mapping[str, Tensor]) -> Iterator[None]:
    """Tables by port name for the forward pass inside the block; none leaves the modules alone."""
    token = _TABLES.set(inputs)
    try:
        yield
    finally:
        _TABLES.reset(token)
