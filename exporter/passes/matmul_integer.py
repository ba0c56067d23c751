"""Products of eight-bit integers in the place of products with weights of one scale per row.

As ONNX Runtime's ``quantize_dynamic`` writes them: DynamicQuantizeLinear rounds the activation when the graph runs,
MatMulInteger multiplies, and one product with both scales gives the result. Codes are unsigned with zero point 128:
the same numbers, and no 16-bit sum saturates on CPUs without VNNI, as it does for unsigned times signed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from kvparity.exporter.passes.match import replace

__all__ = ["CENTER", "look_up_rows", "multiply_integers"]

CENTER = 128  # zero point of the codes
_CENTER_NAME = "integers.center"
_ROUNDED = "DynamicQuantizeLinear"


def multiply_integers(model: ir.Model, node: ir.Node, codes: ir.Value, scales: ir.Value) -> None:
    """MatMul(x, W^T) as integers.

    Args:
        model: The graph.
        node: The product.
        codes: (rows, columns) uint8.
        scales: (rows,) float32.
    """
    source = node.inputs[0]
    assert source is not None
    activation, scale, zero = _round(model, source)
    turned = _before(model, node, "Transpose", [codes], perm=[1, 0])
    product = _before(model, node, "MatMulInteger", [activation, turned, zero, _center(model)])
    wide = _before(model, node, "Cast", [product], to=int(ir.DataType.FLOAT))
    both = _before(model, node, "Mul", [scale, scales])
    replace(model, node, "Mul", [wide, both])


def look_up_rows(model: ir.Model, node: ir.Node, codes: ir.Value, scales: ir.Value) -> None:
    """Gather(W, ids): codes (rows, columns) uint8 and scales (rows, 1) of the rows alone."""
    ids = node.inputs[1]
    chosen = _before(model, node, "Gather", [codes, ids], axis=0)
    wide = _before(model, node, "Cast", [chosen], to=int(ir.DataType.FLOAT))
    name = f"{_CENTER_NAME}.float"
    if name not in model.graph.initializers:
        model.graph.register_initializer(_scalar(name, np.asarray(CENTER, np.float32)))
    centered = _before(model, node, "Sub", [wide, model.graph.initializers[name]])
    factors = _before(model, node, "Gather", [scales, ids], axis=0)
    replace(model, node, "Mul", [centered, factors])


def _round(model: ir.Model, source: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """The value's codes, scale and zero point; made once per value, right after it."""
    for use in source.uses():
        if use.node.op_type == _ROUNDED:
            return use.node.outputs[0], use.node.outputs[1], use.node.outputs[2]
    node = ir.node(_ROUNDED, [source], num_outputs=3)
    producer = source.producer()
    if producer is None:
        model.graph.insert_before(model.graph.node(0), node)
    else:
        node.metadata_props.update(producer.metadata_props)
        model.graph.insert_after(producer, node)
    return node.outputs[0], node.outputs[1], node.outputs[2]


def _center(model: ir.Model) -> ir.Value:
    if _CENTER_NAME not in model.graph.initializers:
        model.graph.register_initializer(_scalar(_CENTER_NAME, np.asarray(CENTER, np.uint8)))
    return model.graph.initializers[_CENTER_NAME]


def _scalar(name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    return ir.Value(name=name, const_value=tensor, shape=ir.Shape(()), type=ir.TensorType(tensor.dtype))


def _before(model: ir.Model, node: ir.Node, op_type: str, inputs: list[Any], **attributes: int | list[int]) -> ir.Value:
    made = ir.node(op_type, inputs, attributes=attributes)
    made.metadata_props.update(node.metadata_props)
    model.graph.insert_before(node, made)
    return made.outputs[0]
