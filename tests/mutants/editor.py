"""Small edits of one graph: find a node by module and operator, put other nodes or constants in its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from kvparity.exporter.contract.probes import kept_probes
from kvparity.exporter.contract.spec import FLOAT64_CONSTANTS, ModelSpec

__all__ = ["Change", "Edit", "Editor", "Node", "NotApplicableError", "Value"]

# onnx_ir types every input and every producer as optional; a fault that finds none there raises, so none is narrowed.
Node = Any
Value = Any


class NotApplicableError(Exception):
    """The graph has nothing that this fault could be put into."""


class Editor:
    """One graph that is being damaged.

    Args:
        model: onnx_ir model; changed in place.
        spec: The model's description.
        kind: ``prefill`` or ``decode``.
    """

    def __init__(self, model: ir.Model, spec: ModelSpec, kind: str) -> None:
        self.model, self.spec, self.kind = model, spec, kind
        self._count = 0
        self.mine: set[ir.Node] = set()  # nodes of the fault

    def value(self, name: str) -> Value:
        """A value by name, or by the probe that it is."""
        name = kept_probes(self.model).get(name, name)
        for value in [*self.model.graph.inputs, *self.model.graph.initializers.values()]:
            if value.name == name:
                return value
        for node in self.model.graph:
            for value in node.outputs:
                if value.name == name:
                    return value
        raise NotApplicableError(f"no value {name}")

    def maker(self, name: str) -> Node:
        """The node that makes a value."""
        node = self.value(name).producer()
        if node is None:
            raise NotApplicableError(f"{name} is not computed")
        return node

    def nodes(self, scope: str, op_type: str) -> list[Node]:
        """Nodes of a module (exact path) and operator, in order."""
        found = [n for n in self.model.graph if (n.name or "").startswith(scope + "/") and n.op_type == op_type]
        if not found:
            raise NotApplicableError(f"no {op_type} in {scope}")
        return found

    def before(self, name: str, op_type: str) -> Node:
        """The nearest node of an operator that a value is made from."""
        pending, seen = [self.maker(name)], set()
        while pending:
            node = pending.pop(0)
            if node.op_type == op_type:
                return node
            if node not in seen:
                seen.add(node)
                pending += [p for v in node.inputs if v is not None and (p := v.producer()) is not None]
        raise NotApplicableError(f"{name} is not made with {op_type}")

    def constant(self, array: Any, dtype: Any = np.float32) -> Value:
        """A new initializer."""
        self._count += 1
        name = f"fault_{self._count}"
        value = ir.Value(name=name, const_value=ir.tensor(np.asarray(array, dtype), name=name))
        self.model.graph.register_initializer(value)
        return value

    def read(self, node: Node, index: int, value: Value) -> None:
        """Let a node read another value."""
        node.replace_input_with(index, value)

    def const_input(self, node: Node) -> int:
        """Index of a node's constant input."""
        for index, value in enumerate(node.inputs):
            if value is not None and value.const_value is not None:
                return index
        raise NotApplicableError(f"{node.name} reads no constant")

    def weight(self, name: str, change: Change) -> None:
        """Change an initializer, for all who read it."""
        value = self.model.graph.initializers.get(name)
        if value is None or value.const_value is None:
            raise NotApplicableError(f"no weight {name}")
        array = change(value.const_value.numpy().copy())
        value.const_value = ir.tensor(array, name=name)
        self.model.metadata_props[FLOAT64_CONSTANTS] = _without(
            self.model.metadata_props.get(FLOAT64_CONSTANTS, "{}"), name
        )

    def add(self, op_type: str, inputs: Sequence[Value], after: Node, **attributes: Any) -> Value:
        """Add a node behind another one (at the front for None); returns its output."""
        self._count += 1
        node = ir.node(op_type, list(inputs), attributes=attributes)
        scope = (after.name or "").rpartition("/")[0] if after is not None else ""
        node.name = f"{scope}/{op_type}_f{self._count}" if scope else f"{op_type}_f{self._count}"
        self.mine.add(node)
        node.outputs[0].name = f"fault/{self._count}"
        if after is None:
            self.model.graph.insert_before(self.model.graph[0], node)
        else:
            self.model.graph.insert_after(after, node)
        return node.outputs[0]

    def rewrite(self, name: str, make: Callable[[Value], Value]) -> None:
        """Put what ``make`` builds from a value in the value's place, name and output port included.

        Nodes are inserted behind the value's maker one by one, so ``make`` must chain each from the last.
        """
        old = self.value(name)
        name = str(old.name)
        uses = tuple(old.uses())
        new = make(old)
        mine = self._made_from(new)
        for use in uses:
            if use.node not in mine:
                use.node.replace_input_with(use.idx, new)
        old.name, new.name = f"{name}/before", name
        for index, output in enumerate(self.model.graph.outputs):
            if output is old:
                new.shape, new.type = old.shape, old.type
                self.model.graph.outputs[index] = new

    def _made_from(self, value: Value) -> set[ir.Node]:
        """Nodes of the fault that a value is made from."""
        pending, seen = [value.producer()], set()
        while pending:
            node = pending.pop()
            if node is not None and node in self.mine and node not in seen:
                seen.add(node)
                pending += [v.producer() for v in node.inputs if v is not None]
        return seen

    def scale(self, name: str, factor: float) -> None:
        """Multiply a value."""
        self.rewrite(name, lambda v: self.add("Mul", [v, self.constant(factor)], v.producer()))

    def bypass(self, name: str, source: Value) -> None:
        """Let everyone read ``source`` where they read a value."""
        self.rewrite(name, lambda v: self.add("Identity", [source], v.producer()))


Edit = Callable[[Editor], None]
Change = Callable[[np.ndarray], np.ndarray]


def _without(text: str, name: str) -> str:
    import json

    digits = json.loads(text)
    digits.pop(name, None)
    return json.dumps(digits, sort_keys=True)
