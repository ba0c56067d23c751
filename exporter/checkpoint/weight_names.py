"""Names of a model's weights: a meta model in, each persistent tensor once with all of its names out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["WeightName", "weight_names"]


@dataclass(frozen=True)
class WeightName:
    """A weight that the graphs need: its canonical name, its shape and dtype, and other names of the same tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    aliases: tuple[str, ...] = ()


def weight_names(meta_model: Any) -> tuple[WeightName, ...]:
    """Every persistent tensor of a model, tied ones once."""
    persistent = set(meta_model.state_dict().keys())
    names: dict[int, list[str]] = {}
    seen: dict[int, Any] = {}
    tensors = [*meta_model.named_parameters(remove_duplicate=False), *meta_model.named_buffers(remove_duplicate=False)]
    for name, tensor in tensors:
        if name in persistent:
            names.setdefault(id(tensor), []).append(name)
            seen[id(tensor)] = tensor
    return tuple(
        WeightName(found[0], tuple(seen[key].shape), str(seen[key].dtype).removeprefix("torch."), tuple(found[1:]))
        for key, found in names.items()
    )
