"""What an output's name says: its kind, and the cache slot that it holds."""

from __future__ import annotations

from kvparity.exporter.contract.spec import ModelSpec, SlotSpec

__all__ = ["KINDS", "kind_of", "slot_of"]

KINDS = ("logits", "key", "value")


def kind_of(tensor: str) -> str:
    """``logits``, ``key`` or ``value``: outputs of a kind share a limit and a budget."""
    return tensor.rpartition(".")[2]


def slot_of(model: ModelSpec, tensor: str) -> SlotSpec | None:
    """The cache slot of ``present.N.key`` or ``cache.N.key``; None for logits and names that the contract lacks."""
    parts = tensor.split(".")
    if len(parts) != 3 or parts[0] not in ("present", "cache") or not parts[1].isdigit():
        return None
    return next((slot for slot in model.slots if slot.slot == int(parts[1])), None)
