"""Faults of states: of a short convolution's columns and of a recurrence, in a graph with LinearAttention nodes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tests.mutants.editor import Editor
from tests.mutants.mutant import Mutant

__all__ = ["MUTANTS"]
_DECODE = ("decode",)
_STATE, _DECAY = 3, 4  # inputs of LinearAttention


def _rule(e: Editor, slot: int) -> ir.Node:
    return e.maker(f"present.{slot}.recurrent_state")


def _columns_off_by_one(e: Editor) -> None:
    """The oldest column comes last."""

    def turn(value: ir.Value) -> ir.Value:
        zero, one, last, axis = (e.constant([n], np.int64) for n in (0, 1, np.iinfo(np.int64).max, 2))
        head = e.add("Slice", [value, zero, one, axis], value.producer())
        tail = e.add("Slice", [value, one, last, axis], head.producer())
        return e.add("Concat", [tail, head], tail.producer(), axis=2)

    e.rewrite("present.0.conv_state", turn)


def _other_layer(e: Editor) -> None:
    e.read(_rule(e, 2), _STATE, e.value("past_key_values.0.recurrent_state"))


def _without(e: Editor, place: int) -> None:
    node = _rule(e, 0)
    value = node.inputs[place]
    assert value is not None
    e.read(node, place, e.add("Mul", [value, e.constant(0.0)], value.producer()))


def _padding_writes(e: Editor) -> None:
    """The product with the mask of live tokens is left out."""
    node = e.before("layers.0.linear_attn.q_proj", "Mul")
    hidden = next(value for value in node.inputs if value is not None and value.name != "attention_mask")
    e.bypass(str(node.outputs[0].name), hidden)


def _taps_reversed(e: Editor) -> None:
    name = next(name for name in e.model.graph.initializers if name.endswith("0.linear_attn.conv1d.weight"))
    e.weight(name, lambda weight: np.ascontiguousarray(weight[..., ::-1]))


_AT_STATE = "present.0.recurrent_state"
MUTANTS: tuple[Mutant, ...] = (
    Mutant("conv-columns", "columns of a conv_state move by one", "present.0.conv_state", _columns_off_by_one),
    Mutant("conv-taps-reversed", "a convolution looks ahead in its own order", _AT_STATE, _taps_reversed),
    Mutant("state-of-another-layer", "layer 2 goes on from layer 0's state", "present.2.*", _other_layer, _DECODE),
    Mutant("decay-left-out", "a state does not decay", _AT_STATE, lambda e: _without(e, _DECAY), quick=True),
    Mutant("state-not-carried", "decode starts from zeros", _AT_STATE, lambda e: _without(e, _STATE), _DECODE),
    Mutant("padding-writes", "padded tokens leave a trace in states", "present.0.*|layers.0.*", _padding_writes),
)
