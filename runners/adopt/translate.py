"""A foreign graph in our contract's ports: for evaluating it in float64 and looking inside; its nodes stay as they are.

What an engine runs is always the untouched file (:mod:`runners.adopt.session`); this copy lives in memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.foreign import ExtraInput, ForeignGraph
from kvparity.exporter.contract.graph_file import load_graph_file
from kvparity.exporter.contract.ports import graph_spec
from kvparity.exporter.contract.spec import GraphKind, Port
from kvparity.runners.adopt.ports import slot_of_port

__all__ = ["contract_graph"]

_PAST = "past_key_values."


def contract_graph(bundle: Bundle, kind: GraphKind) -> Any:
    """The graph that plays ``kind``, as an onnx_ir model with the inputs and outputs of our contract.

    Local functions are inlined, caches have the axes (batch, kv_heads, rows, head_dim), and an input that the graph
    lacks is there all the same, read by nothing.

    Args:
        bundle: An adopted bundle.
        kind: Which of our graphs.
    """
    from onnx_ir.passes.common import InlinePass

    assert bundle.manifest.foreign is not None
    foreign = bundle.manifest.foreign.graphs[kind]
    model = load_graph_file(bundle.graph_path(foreign.run))
    for key in [key for key in model.functions if key[0] == "com.microsoft"]:
        del model.functions[key]  # a body for other engines; ONNX Runtime has the operator itself
    if model.functions:
        model = InlinePass()(model).model
    _name_all(model)
    _Ports(bundle, kind, foreign, model).translate()
    return model


def _name_all(model: Any) -> None:
    """Every node and value has a name, and none that a probe might have: those hold no ``/``."""
    for index, node in enumerate(model.graph):
        node.name = node.name or f"{node.op_type}_{index}"
        for place, value in enumerate(node.outputs):
            if not value.is_graph_output():
                value.name = f"{value.name or f'{index}_{place}'}/"


class _Ports:
    """One translation."""

    def __init__(self, bundle: Bundle, kind: GraphKind, foreign: ForeignGraph, model: Any) -> None:
        self._bundle, self._foreign, self._model = bundle, foreign, model
        self._spec = graph_spec(kind, bundle.model, bundle.options)
        self._made: list[Any] = []
        self._inputs: dict[str, Any] = {}

    def translate(self) -> None:
        """Rename, turn and complete the ports, in place."""
        given = {str(value.name): value for value in self._model.graph.inputs}
        ports = {port.name: port for port in self._spec.inputs}
        for name in ("input_ids", "attention_mask", "position_ids"):
            self._inputs[name] = self._new_input(ports[name])
        for ours, own in self._foreign.inputs.items():
            if own in given:
                self._stand_in(given.pop(own), ours, ports.get(ours))
        for extra in self._foreign.extra:
            if extra.name in given:
                self._replace(given.pop(extra.name), self._extra(extra))
        self._model.graph.inputs.clear()
        for port in self._spec.inputs:
            self._model.graph.inputs.append(self._inputs.get(port.name) or self._new_input(port))
        self._outputs()

    def _stand_in(self, own: Any, ours: str, port: Port | None) -> None:
        """Our input in the place of the graph's: zeros for a past that our call does not have."""
        if not ours.startswith(_PAST):
            self._replace(own, self._cast(self._inputs[ours], own.dtype))
            return
        if port is None:
            self._replace(own, self._cast(self._empty_past(ours), own.dtype))
            return
        value = self._inputs[ours] = self._new_input(port)
        if self._foreign.rows_first and len(port.shape) == 4:
            value = self._node("Transpose", [value], perm=[0, 2, 1, 3])
        self._replace(own, self._cast(value, own.dtype))

    def _empty_past(self, ours: str) -> Any:
        slot = slot_of_port(self._bundle.model, ours)
        shape = list(slot.shape(ours.split(".")[2], 1, self._foreign.empty_rows))
        if self._foreign.rows_first and len(shape) == 4:
            shape[1], shape[2] = shape[2], shape[1]
        batch = self._node("Slice", [self._node("Shape", [self._inputs["input_ids"]]), *map(self._ints, ([0], [1]))])
        sizes = self._node("Concat", [batch, self._ints(shape[1:])], axis=0)
        return self._node("Expand", [self._constant(np.zeros([1] * len(shape), np.float32)), sizes])

    def _extra(self, extra: ExtraInput) -> Any:
        """An input that our contract does not have, computed from those that it has."""
        dtype = np.dtype(extra.dtype)
        if extra.kind == "constant":
            first = self._spec.kind == "prefill" and extra.dtype == "bool"
            return self._constant(np.full([int(size) for size in extra.shape], 0 if first else extra.value, dtype))
        mask = self._inputs["attention_mask"]
        total = self._node("Slice", [self._node("Shape", [mask]), *map(self._ints, ([1], [2]))])
        tokens = self._node("Slice", [self._node("Shape", [self._inputs["input_ids"]]), *map(self._ints, ([1], [2]))])
        start = self._node("Sub", [total, tokens])
        if extra.kind == "cache_position":
            scalar = self._constant(np.asarray([], np.int64))
            ends = [self._node("Reshape", [value, scalar]) for value in (start, total)]
            made = self._node("Range", [*ends, self._constant(np.asarray(1, np.int64))])
        elif extra.kind == "total":
            made = self._node("Reshape", [total, self._ints([int(size) for size in extra.shape])])
        else:
            axis = self._ints([1])
            if extra.kind == "past_lengths":
                mask = self._node("Slice", [mask, self._ints([0]), start, axis])
            seen = self._node("ReduceSum", [mask, axis], keepdims=int(len(extra.shape) > 1))
            less = 1 if extra.kind == "last_slots" else 0
            made = self._node("Sub", [seen, self._constant(np.asarray(less, np.int64))])
            if not extra.shape:
                made = self._node(
                    "Reshape", [self._node("Slice", [made, *map(self._ints, ([0], [1]))]), self._ints([])]
                )
        return self._cast(made, self._ir().DataType.from_numpy(dtype))

    def _outputs(self) -> None:
        outputs = {str(value.name): value for value in self._model.graph.outputs}
        self._model.graph.outputs.clear()
        later: list[Any] = []
        for port in self._spec.outputs:
            own = self._foreign.outputs.get(port.name)
            if own not in outputs:
                continue
            value = self._shaped(port, outputs[own])
            value.name = port.name
            later.append(value)
        self._model.graph.outputs.extend(later)

    def _shaped(self, port: Port, value: Any) -> Any:
        """An output in our shape and dtype; a node of its own, so that the value keeps its readers and its name."""
        foreign = self._bundle.manifest.foreign
        assert foreign is not None
        value.name = f"{value.name}/"
        made: list[Any] = []
        wanted = self._ir().DataType.from_numpy(
            np.dtype(port.dtype) if port.dtype != "bfloat16" else np.dtype("float32")
        )
        if port.name == "logits":
            made.append(("Cast", [], {"to": int(wanted)}))
        elif self._foreign.rows_first and len(port.shape) == 4:
            made.append(("Transpose", [], {"perm": [0, 2, 1, 3]}))
        if port.name != "logits" and foreign.extra_rows and len(port.shape) == 4:
            slot = slot_of_port(self._bundle.model, port.name)
            if slot.window is not None and self._bundle.options.bounded:
                ends = map(self._ints, ([1 - slot.window], [np.iinfo(np.int64).max], [2]))
                made.append(("Slice", list(ends), {}))
        for name, more, attributes in made or [("Identity", [], {})]:
            value = self._node(name, [value, *more], at_end=True, **attributes)
        return value

    # --- nodes ---

    def _ir(self) -> Any:
        import onnx_ir

        return onnx_ir

    def _new_input(self, port: Port) -> Any:
        ir = self._ir()
        dtype = ir.DataType[port.dtype.upper().replace("FLOAT32", "FLOAT")]
        return ir.Value(name=port.name, type=ir.TensorType(dtype), shape=ir.Shape(port.shape))

    def _node(self, name: str, inputs: list[Any], *, at_end: bool = False, **attributes: Any) -> Any:
        ir = self._ir()
        node = ir.node(name, inputs, attributes or None, name=f"contract/{name}_{len(self._made)}")
        node.outputs[0].name = f"{node.name}/"
        self._made.append(node)
        if at_end or not len(self._model.graph):
            self._model.graph.append(node)
        else:
            self._model.graph.insert_before(self._first(), node)
        return node.outputs[0]

    def _first(self) -> Any:
        """The graph's own first node: made nodes stand before it, in the order in which they were made."""
        made = set(self._made)
        return next(node for node in self._model.graph if node not in made)

    def _constant(self, array: Any) -> Any:
        ir = self._ir()
        value = ir.Value(name=f"contract/constant_{len(self._model.graph.initializers)}", const_value=ir.tensor(array))
        self._model.graph.register_initializer(value)
        return value

    def _ints(self, numbers: list[int]) -> Any:
        return self._constant(np.asarray(numbers, np.int64))

    def _cast(self, value: Any, dtype: Any) -> Any:
        return value if dtype is None or value.dtype == dtype else self._node("Cast", [value], to=int(dtype))

    def _replace(self, old: Any, new: Any) -> None:
        old.replace_all_uses_with(new)
