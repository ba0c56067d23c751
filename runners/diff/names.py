"""What an output's name says: its kind, the cache slot that it holds, and which axis counts token slots."""

from __future__ import annotations

from typing import Literal

from kvparity.exporter.contract.spec import ModelSpec, SlotSpec

__all__ = ["KINDS", "Axis", "axis_of", "is_state", "kind_of", "slot_of"]

KINDS = ("logits", "key", "value", "conv_state", "recurrent_state", "ssm_state")
Axis = Literal[0, 1, 2]


def axis_of(tensor: str) -> Axis:
    """Axis of an output that counts token slots; 0 for a state, which has none."""
    axes: dict[str, Axis] = {"logits": 1, "key": 2, "value": 2, "conv_state": 2}
    return axes.get(kind_of(tensor), 0)


def is_state(tensor: str) -> bool:
    """Whether an output is a state: padding leaves none in it, so all of it is judged."""
    return kind_of(tensor).endswith("_state")


def kind_of(tensor: str) -> str:
    """``logits``, or the part of a cache: outputs of a kind share a limit and a budget."""
    return tensor.rpartition(".")[2]


def slot_of(model: ModelSpec, tensor: str) -> SlotSpec | None:
    """The cache slot of ``present.N.key`` or ``cache.N.key``; None for logits and names that the contract lacks."""
    parts = tensor.split(".")
    if len(parts) != 3 or parts[0] not in ("present", "cache") or not parts[1].isdigit():
        return None
    return next((slot for slot in model.slots if slot.slot == int(parts[1])), None)
