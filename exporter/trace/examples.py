"""Example inputs of a graph: fake tensors at sizes that no sum or product of others equals by chance."""

from __future__ import annotations

import torch
from torch import Tensor

from kvparity.exporter.contract.spec import PREFILL, GraphSpec, ModelSpec, Port

__all__ = ["make_examples"]

_SHORT = {"batch": 5, "sequence": 2, "past": 4, "past_sliding": 1, "capacity": 12_007}  # fewer rows than a window
_FULL = {"batch": 2, "sequence": 3, "past": 1009, "past_sliding": 1009, "capacity": 10_211}
_LONG = {"batch": 433, "sequence": 769, "past": 40_099, "past_sliding": 2503, "capacity": 80_021}
_EVEN = {"batch": 630, "sequence": 1030, "past": 60_008, "past_sliding": 10, "capacity": 90_002}


def make_examples(
    graph: GraphSpec, spec: ModelSpec, dtype: torch.dtype, *, bounded: bool = False
) -> list[dict[str, Tensor]]:
    """Inputs by name, at each example; call it where tensors are fake.

    Two large ones that pass every window, one of them even; a short call on a full sliding cache; one that fills no
    window. Python sees the first, whose sizes are like no number in a model. Where ``bounded``, none is longer than the
    model's positions, for models that cut their masks and biases out of a table of that size.
    """
    windows = [layer.window for layer in spec.layers if layer.window is not None]
    longest, kept = max(windows, default=0), min(windows, default=_FULL["past"]) - 1
    examples = []
    for given in (_LONG, _EVEN, _FULL, _SHORT):
        sizes = _within(given, spec.max_position) if bounded else dict(given)
        if graph.kind == PREFILL:
            sizes |= {"past": 0, "past_sliding": 0}
        if given is _FULL:
            sizes["past_sliding"] = min(sizes["past_sliding"], kept)
        elif given is not _SHORT and not bounded:
            sizes["sequence"] += longest
            sizes["capacity"] += longest
        sizes["total"] = sizes["past"] + sizes["sequence"]
        sizes["rows_sliding"] = sizes["past_sliding"] + sizes["sequence"]
        examples.append({port.name: _zeros(port, sizes, dtype) for port in graph.inputs})
    return examples


def _within(given: dict[str, int], most: int) -> dict[str, int]:
    """Sizes in the proportions of an example whose tokens fit the model's positions."""
    sizes, tokens = dict(given), given["sequence"] + given["past"]
    if tokens > most:
        sizes["sequence"] = max(most * 5 // 16 + (3 if given is _LONG else 2), 3)
        sizes["past"] = max(most * 7 // 16 + (5 if given is _LONG else 6), 2)
    sizes["past_sliding"] = min(given["past_sliding"], sizes["past"])
    return sizes


def _zeros(port: Port, sizes: dict[str, int], dtype: torch.dtype) -> Tensor:
    shape = [sizes[dim] if isinstance(dim, str) else dim for dim in port.shape]
    if port.dtype == "int64":
        return torch.zeros(shape, dtype=torch.int64)
    wide = dtype == torch.float64  # then every port is, and lowered later
    return torch.zeros(shape, dtype=dtype if wide else getattr(torch, port.dtype))
