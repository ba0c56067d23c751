"""Rotary frequencies that depend on the length of a call, in transformers' own modules: one call at a time.

transformers keeps on the module what it computed for earlier calls (``dynamic_rope_update``). A reference must give
for a call what a model gives that was just loaded.
"""

from __future__ import annotations

from typing import Any

import torch

from kvparity.exporter.contract.modules import ropes_by_length

__all__ = ["compute_long", "forget_length"]

_MANY = 1 << 30  # a position beyond every switch


def compute_long(model: Any) -> None:
    """Let longrope modules compute the frequencies of their long factors now, in the float32 of the short ones.

    transformers does so in the first long call, which the float64 reference makes with more digits.
    """
    for module, layer_type, rope_type in ropes_by_length(model):
        if rope_type == "longrope":
            with torch.no_grad():
                module(torch.zeros(1, 1, 1), torch.tensor([[_MANY]]), *filter(None, [layer_type]))


def forget_length(model: Any) -> None:
    """Put dynamic NTK modules back to the frequencies of a short text: the next call computes what it needs."""
    for module, layer_type, rope_type in ropes_by_length(model):
        if "dynamic" in rope_type:
            prefix = f"{layer_type}_" if layer_type else ""
            original = getattr(module, f"{prefix}original_inv_freq")
            module.register_buffer(f"{prefix}inv_freq", original, persistent=False)
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
