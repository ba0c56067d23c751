"""Rotary embeddings (RoPE) as tables: what a host needs to compute them, and the hooks that feed them to the model."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from kvparity.exporter.contract.float64 import lifted
from kvparity.exporter.contract.spec import RopeSpec

__all__ = ["hook_tables", "rope_specs", "use_tables"]

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
            except Exception:  # a module that takes or gives something else, such as complex numbers: no table
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
    with torch.no_grad(), lifted(True):
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
        return tuple(tables[RopeSpec.port_of(name, part)].to(output[0].dtype) for part in ("cos", "sin"))

    return hook


@contextmanager
def use_tables(inputs: Mapping[str, Tensor]) -> Iterator[None]:
    """Tables by port name for the forward pass inside the block; none leaves the modules alone."""
    token = _TABLES.set(inputs)
    try:
        yield
    finally:
        _TABLES.reset(token)
