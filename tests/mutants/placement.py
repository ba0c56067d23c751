"""Faults of placing weights: between checkpoint and bundle a weight is exchanged, tied, transposed, scaled or rounded.

The graphs stay as they are and a bundle's weights are edited, which is what a wrong placement leaves behind. A
reference made from the bundle has the same fault and sees nothing; one loaded from the checkpoint sees all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["PLACEMENTS", "PlacementMutant", "misplace"]

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class PlacementMutant:
    """One fault: its name, what it is in words, and the edit of the weights."""

    name: str
    what: str
    edit: Callable[[Weights], None]


def misplace(bundle: Path, mutant: PlacementMutant) -> None:
    """Edit a bundle's weights in place; names, shapes and offsets stay."""
    path = bundle / "model.safetensors"
    weights = load_file(path)
    mutant.edit(weights)
    before = _header(path)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path, metadata={"format": "pt"})
    assert _header(path) == before, "offsets moved, and the graphs point at them"


def _header(path: Path) -> bytes:
    data = path.read_bytes()
    return data[: 8 + int.from_bytes(data[:8], "little")]


def _exchange(one: str, other: str) -> Callable[[Weights], None]:
    def edit(weights: Weights) -> None:
        weights[one], weights[other] = weights[other].clone(), weights[one].clone()

    return edit


def _change(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Weights], None]:
    def edit(weights: Weights) -> None:
        weights[name] = change(weights[name].clone())

    return edit


def _tie(weights: Weights) -> None:
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()


def _without_row(table: Tensor) -> Tensor:
    table[0] = 0
    return table


def _interleaved(queries: Tensor) -> Tensor:
    return queries.view(4, 2, -1, queries.shape[1]).transpose(1, 2).reshape(queries.shape)


_LAYER = "model.layers.0."
PLACEMENTS = (
    PlacementMutant("tied-head", "the embedding in the place of a head of its own", _tie),
    PlacementMutant(
        "head-and-embedding", "head and embedding exchanged", _exchange("lm_head.weight", "model.embed_tokens.weight")
    ),
    PlacementMutant(
        "keys-for-values",
        "key and value projection exchanged",
        _exchange(f"{_LAYER}self_attn.k_proj.weight", f"{_LAYER}self_attn.v_proj.weight"),
    ),
    PlacementMutant(
        "gate-for-up",
        "gate and up projection exchanged",
        _exchange(f"{_LAYER}mlp.gate_proj.weight", f"{_LAYER}mlp.up_proj.weight"),
    ),
    PlacementMutant(
        "other-layer",
        "the norms of two layers exchanged",
        _exchange(f"{_LAYER}input_layernorm.weight", "model.layers.1.input_layernorm.weight"),
    ),
    PlacementMutant(
        "transposed", "a square projection transposed", _change(f"{_LAYER}self_attn.q_proj.weight", lambda w: w.T)
    ),
    PlacementMutant("scaled-head", "the head scaled by 1/16", _change("lm_head.weight", lambda w: w / 16)),
    PlacementMutant("scaled-norm", "one more on the weights of a norm", _change("model.norm.weight", lambda w: w + 1)),
    PlacementMutant(
        "pad-row", "the embedding of the padding token zeroed", _change("model.embed_tokens.weight", _without_row)
    ),
    PlacementMutant(
        "rounded",
        "a projection rounded to bfloat16",
        _change(f"{_LAYER}self_attn.o_proj.weight", lambda w: w.to(torch.bfloat16).float()),
    ),
    PlacementMutant(
        "heads-interleaved",
        "the rows of the queries in the order of interleaved rotary halves",
        _change(
            f"{_LAYER}self_attn.q_proj.weight", lambda w: w.view(4, 2, -1, w.shape[1]).transpose(1, 2).reshape(w.shape)
        ),
    ),
)
