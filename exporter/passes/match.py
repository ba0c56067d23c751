"""What rewriting passes share: looking at producers and constants, and putting one node in another's place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

__all__ = [
    "add_constant",
    "add_target",
    "constant",
    "insert_after",
    "insert_before",
    "made_by",
    "replace",
    "reshape_target",
    "same_size",
]


def made_by(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that makes a value, if it is of one of these operators."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type in op_types else None


def constant(value: ir.Value | None) -> list[Any] | None:
    """The elements of a constant that is not an external weight, or None."""
    tensor = value.const_value if value is not None else None
    if tensor is None or isinstance(tensor, ir.ExternalTensor):
        return None
    return np.asarray(tensor.numpy()).ravel().tolist()


def add_constant(model: ir.Model, name: str, array: Any, dtype: npt.DTypeLike = np.int64) -> ir.Value:
    """A constant of that name; made once."""
    if name not in model.graph.initializers:
        tensor = ir.tensor(np.asarray(array, dtype), name=name)
        model.graph.register_initializer(
            ir.Value(
                name=name, const_value=tensor, shape=ir.Shape(list(np.shape(array))), type=ir.TensorType(tensor.dtype)
            )
        )
    return model.graph.initializers[name]


def add_target(model: ir.Model, *sizes: int) -> ir.Value:
    """The constant target of a Reshape or Expand; made once."""
    return add_constant(model, "shape_" + "_".join(str(size).replace("-", "m") for size in sizes), sizes)


def reshape_target(data: ir.Shape, out: ir.Shape) -> list[int] | None:
    """Sizes, 0 for "as the input at this place", -1 for "what is left"; None where two are left."""
    sizes = [
        size if isinstance(size, int) else 0 if place < len(data) and same_size(data[place], size) else -1
        for place, size in enumerate(out)
    ]
    return sizes if sizes.count(-1) <= 1 else None


def same_size(one: int | ir.SymbolicDim, other: int | ir.SymbolicDim) -> bool:
    """Whether two sizes are known to be equal; two unknown ones are not."""
    return one == other and getattr(one, "value", one) is not None


def insert_before(
    model: ir.Model,
    node: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    domain: str = "",
    **attributes: Any,
) -> ir.Value:
    """The output of a new node before another, of which it is a part."""
    made = ir.node(op_type, inputs, attributes=attributes, domain=domain)
    made.metadata_props.update(node.metadata_props)
    model.graph.insert_before(node, made)
    return made.outputs[0]


def insert_after(
    model: ir.Model, source: ir.Value, op_type: str, *others: ir.Value, outputs: int = 1, **attributes: Any
) -> Sequence[ir.Value]:
    """The outputs of a new node that takes a value, right after the node that makes it, of which it is a part."""
    made = ir.node(op_type, [source, *others], attributes=attributes, num_outputs=outputs)
    producer = source.producer()
    if producer is None:
        model.graph.insert_before(model.graph.node(0), made)
    else:
        made.metadata_props.update(producer.metadata_props)
        model.graph.insert_after(producer, made)
    return made.outputs


def replace(
    model: ir.Model,
    node: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any] | None = None,
    domain: str = "",
) -> ir.Node:
    """Put a one-output node in the place of another, under the old name, dtype, shape and metadata of its output."""
    old = node.outputs[0]
    new = ir.node(op_type, inputs, attributes=dict(attributes or {}), domain=domain)
    out = new.outputs[0]
    out.name, out.type, out.shape = old.name, old.type, old.shape
    new.metadata_props.update(node.metadata_props)
    out.metadata_props.update(old.metadata_props)
    model.graph.insert_before(node, new)
    old.replace_all_uses_with(out, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)
    return new
