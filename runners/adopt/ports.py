"""Whose port is which: a foreign graph's inputs and outputs, recognised by name, dtype and shape."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvparity.exporter.contract.errors import BundleError
from kvparity.exporter.contract.foreign import ExtraInput
from kvparity.exporter.contract.spec import ModelSpec, Port, SlotSpec, past_name, present_name

__all__ = ["Recognised", "recognise_inputs", "recognise_outputs", "slot_of_port"]

_IDS, _MASK, _POSITIONS = "input_ids", "attention_mask", "position_ids"
_CACHE_WORDS = re.compile(r"past_key_values?|present_key_values?|key_values?|past_kv|present|past|cache|input|output")
_KEY = re.compile(r"(?:^|[._/])(?:keys?|k)(?:[._/\d]|$)")
_VALUE = re.compile(r"(?:^|[._/])(?:values?|v)(?:[._/\d]|$)")
_STATES = {"conv_state": ("conv",), "recurrent_state": ("recurrent",), "ssm_state": ("ssm",)}


@dataclass(frozen=True)
class Recognised:
    """Ports of a graph: our name to its own, and the inputs that are left."""

    names: dict[str, str]
    others: tuple[Port, ...] = ()


def slot_of_port(model: ModelSpec, name: str) -> SlotSpec:
    """The cache slot of ``past_key_values.N.PART`` or ``present.N.PART``."""
    return next(slot for slot in model.slots if slot.slot == int(name.split(".")[1]))


def recognise_inputs(ports: Sequence[Port], model: ModelSpec) -> Recognised:
    """Our inputs among a graph's.

    Raises:
        BundleError: It has no token ids, or caches that fit neither the model's layers nor its slots.
    """
    names: dict[str, str] = {}
    for wanted in (_IDS, _MASK, _POSITIONS):
        found = next((port for port in ports if wanted in port.name.lower() and len(port.shape) == 2), None)
        if found is not None:
            names[wanted] = found.name
    if _IDS not in names:
        raise BundleError(f"no input is called input_ids; inputs are {_listed(ports)}")
    caches, others = _caches([port for port in ports if port.name not in names.values()], model)
    names |= {past_name(slot, part): name for (slot, part), name in caches.items()}
    return Recognised(names, others)


def recognise_outputs(ports: Sequence[Port], model: ModelSpec) -> Recognised:
    """Our outputs among a graph's.

    Raises:
        BundleError: No output can be the logits, or caches fit neither the model's layers nor its slots.
    """
    logits = next((port for port in ports if "logits" in port.name.lower()), None)
    logits = logits or next((p for p in ports if len(p.shape) == 3 and p.shape[-1] == model.vocab_size), None)
    if logits is None:
        raise BundleError(
            f"no output is called logits or ends in {model.vocab_size} columns; outputs are {_listed(ports)}"
        )
    caches, others = _caches([port for port in ports if port is not logits], model)
    names = {present_name(slot, part): name for (slot, part), name in caches.items()}
    return Recognised({"logits": logits.name, **names}, others)


def extra_input(port: Port, model: ModelSpec) -> ExtraInput:
    """What an input beyond ids, mask, positions and caches is fed with.

    Raises:
        BundleError: No name, dtype or shape says which port it is.
    """
    name, fixed = port.name.lower(), tuple(size if isinstance(size, int) else 1 for size in port.shape)
    if port.dtype == "bool" and "use_cache" in name:
        return ExtraInput(port.name, "constant", port.dtype, fixed, 1.0)
    if "sliding_window" in name:
        return ExtraInput(port.name, "constant", port.dtype, fixed, float(model.window or 0))
    if "logits_to_keep" in name:
        return ExtraInput(port.name, "constant", port.dtype, fixed, 0.0)
    if "cache_position" in name:
        return ExtraInput(port.name, "cache_position", port.dtype, ("sequence",))
    if "seqlens_k" in name:
        axes: tuple[int | str, ...] = ("batch",) if len(port.shape) == 1 else ("batch", 1)
        return ExtraInput(port.name, "last_slots", port.dtype, axes)
    if "past_seq" in name or "past_len" in name:
        return ExtraInput(port.name, "past_lengths", port.dtype, ("batch",) if port.shape else ())
    if "total_seq" in name:
        return ExtraInput(port.name, "total", port.dtype, fixed)
    raise BundleError(f"input {port.name} ({port.dtype}{list(port.shape)}): nothing says what it is fed with")


def _caches(ports: Sequence[Port], model: ModelSpec) -> tuple[dict[tuple[int, str], str], tuple[Port, ...]]:
    """(slot, part) to a graph's own name, and the ports that are no caches."""
    found: dict[tuple[int, str], Port] = {}
    others: list[Port] = []
    nameless: list[Port] = []
    for port in ports:
        part, number = _part(port), re.findall(r"\d+", port.name)
        if part and number:
            found[int(number[-1] if part in ("key", "value") else number[0]), part] = port
        elif len(port.shape) == 4 and port.dtype.startswith(("float", "bfloat")):
            nameless.append(port)
        else:
            others.append(port)
    if nameless and not found:  # args_3, args_4, …: keys and values in turn
        found = {(index // 2, ("key", "value")[index % 2]): port for index, port in enumerate(nameless)}
    else:
        others += nameless
    if not found:
        return {}, tuple(others)
    return _in_slots(found, model), tuple(others)


def _part(port: Port) -> str:
    name = port.name.lower()
    for part, words in _STATES.items():
        if any(word in name for word in words):
            return part
    if len(port.shape) != 4:
        return ""
    bare = _CACHE_WORDS.sub("", name)
    if _KEY.search(bare):
        return "key"
    return "value" if _VALUE.search(bare) else ""


def _in_slots(found: Mapping[tuple[int, str], Port], model: ModelSpec) -> dict[tuple[int, str], str]:
    numbers = sorted({number for number, _ in found})
    slots = [slot.slot for slot in model.slots]
    layers = {slot.layer: slot.slot for slot in model.slots}
    if set(numbers) == set(layers):
        place = layers
    elif len(numbers) == len(slots):
        place = dict(zip(numbers, slots, strict=True))
    elif len(numbers) == len(model.layers):
        place = {number: layers[index] for index, number in enumerate(numbers) if index in layers}
    else:
        raise BundleError(
            f"has caches of {len(numbers)} layers, the model has {len(slots)} cache slots in {len(model.layers)} layers"
        )
    return {(place[number], part): port.name for (number, part), port in found.items() if number in place}


def _listed(ports: Sequence[Port]) -> str:
    names = [port.name for port in ports]
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
