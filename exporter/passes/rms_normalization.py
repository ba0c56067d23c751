"""RMSNormalization (opset 23): its arithmetic in, one operator out.

Requires: opset 23 is wanted; squares are ``x * x`` and reciprocal roots ``Reciprocal(Sqrt(y))``.
Ensures: no such chain over the last axis with a constant epsilon is left. The epsilon of a norm's operator is float32;
    the model's metadata holds what each was before, under :data:`exporter.contract.spec.FLOAT64_EPSILON`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from kvparity.exporter.contract.spec import FLOAT64_CONSTANTS, FLOAT64_EPSILON
from kvparity.exporter.passes.conditions import graph_pass, lacks, shaped

__all__ = ["fuse_norms"]


def _over_last_axis(model: ir.Model) -> Iterator[str]:
    for node in model.graph:
        if node.op_type == "RMSNormalization":
            weight = node.inputs[1]
            if node.attributes.get_int("axis", -1) != -1 or weight is None:
                yield f"{node.outputs[0].name} is not normalised over its last axis by a weight"


@graph_pass(requires=[shaped, lacks("RMSNormalization")], ensures=[_over_last_axis])
def fuse_norms(model: ir.Model) -> None:
    """Fuse every chain of squares, mean, root and product over the last axis."""
    for node in list(model.graph):
        if node.op_type == "ReduceMean":
            _fuse(model, node)
    common.RemoveUnusedNodesPass()(model)
    _keep_epsilons(model)


def _keep_epsilons(model: ir.Model) -> None:
    """Of every norm, torch's own layer norms included: a rounded epsilon of 1e-5 is 8e-11 on ModernBERT's logits."""
    kept: dict[str, str] = {}
    for node in model.graph:
        attribute = node.attributes.get("epsilon")
        epsilon = 0.0 if attribute is None else attribute.as_float()
        narrow = float(np.float32(epsilon))
        if narrow != epsilon:
            kept[narrow.hex()] = epsilon.hex()
    if kept:
        model.metadata_props[FLOAT64_EPSILON] = json.dumps(kept, sort_keys=True)


def _fuse(model: ir.Model, mean: ir.Node) -> None:
    source = _squared(mean)
    scaled = _scaled(model, mean, source) if source is not None else None
    if source is None or scaled is None:
        return
    last, epsilon = scaled
    weight, end = _weight(model, last, source)
    if weight is None:
        return
    old = end.outputs[0]
    norm = ir.node("RMSNormalization", [source, weight], attributes={"axis": -1, "epsilon": epsilon})
    out = norm.outputs[0]
    out.name, out.type, out.shape = old.name, old.type, old.shape
    norm.metadata_props.update(end.metadata_props)
    out.metadata_props.update(old.metadata_props)
    model.graph.insert_before(end, norm)
    old.replace_all_uses_with(out, replace_graph_outputs=True)


def _squared(mean: ir.Node) -> ir.Value | None:
    """The x of ReduceMean(x * x) over the last axis, or None."""
    square = mean.inputs[0].producer() if mean.inputs[0] is not None else None
    axes = mean.inputs[1].const_value if len(mean.inputs) > 1 and mean.inputs[1] is not None else None
    if square is None or square.op_type != "Mul" or square.inputs[0] is not square.inputs[1] or axes is None:
        return None
    source = square.inputs[0]
    rank = len(source.shape) if source is not None and source.shape is not None else 0
    return source if axes.numpy().ravel().tolist() in ([-1], [rank - 1]) else None


def _scaled(model: ir.Model, mean: ir.Node, source: ir.Value) -> tuple[ir.Node, float] | None:
    """The node of x * Reciprocal(Sqrt(mean + epsilon)), and epsilon."""
    add = _only_user(mean, "Add")
    constants = [value for value in add.inputs if value is not None] if add is not None else []
    epsilon = next(
        (value for value in constants if value.const_value is not None and value.const_value.size == 1), None
    )
    root = _only_user(add, "Sqrt")
    product = _only_user(_only_user(root, "Reciprocal"), "Mul")
    if product is None or epsilon is None or source not in product.inputs:
        return None
    return product, _exact(model, epsilon)


def _exact(model: ir.Model, value: ir.Value) -> float:
    """A constant with the digits that it was traced with (:mod:`exporter.passes.half_type_constants`)."""
    digits = json.loads(model.metadata_props.get(FLOAT64_CONSTANTS, "{}")).get(value.name)
    if digits is not None:
        return float.fromhex(digits[0])
    assert value.const_value is not None
    return float(value.const_value.numpy().ravel()[0])


def _only_user(node: ir.Node | None, op_type: str) -> ir.Node | None:
    users = list(node.outputs[0].uses()) if node is not None and not node.outputs[0].is_graph_output() else []
    return users[0].node if len(users) == 1 and users[0].node.op_type == op_type else None


def _weight(model: ir.Model, product: ir.Node, source: ir.Value) -> tuple[ir.Value | None, ir.Node]:
    """The weight that the normalised value is multiplied with and the node that does so; ones where there is none."""
    scale = _only_user(product, "Mul")
    if scale is not None:
        weight = next(value for value in scale.inputs if value is not product.outputs[0])
        if weight is not None and weight.shape is not None and len(weight.shape) == 1:
            return weight, scale
    size = source.shape[-1] if source.shape is not None else None
    if not isinstance(size, int) or source.dtype is None:
        return None, product
    name = f"ones_{size}_{source.dtype.name.lower()}"
    if name not in model.graph.initializers:
        ones = ir.tensor(np.ones(size, source.dtype.numpy()), name=name)
        model.graph.register_initializer(ir.Value(name=name, const_value=ones))
    return model.graph.initializers[name], product
