"""Products of eight-bit integers in the place of products with weights of one scale per row.

As ONNX Runtime's ``quantize_dynamic`` writes them: DynamicQuantizeLinear rounds the activation when the graph runs,
MatMulInteger multiplies, and one product with both scales gives the result. Codes are unsigned with zero point 128:
the same numbers, and no 16-bit sum saturates on CPUs without VNNI, as it does for unsigned times signed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from kvparity.exporter.passes.match import add_constant, insert_after, insert_before, replace

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
    turned = insert_before(model, node, "Transpose", [codes], perm=[1, 0])
    center = add_constant(model, _CENTER_NAME, CENTER, np.uint8)
    product = insert_before(model, node, "MatMulInteger", [activation, turned, zero, center])
    wide = insert_before(model, node, "Cast", [product], to=int(ir.DataType.FLOAT))
    both = insert_before(model, node, "Mul", [scale, scales])
    replace(model, node, "Mul", [wide, both])


def look_up_rows(model: ir.Model, node: ir.Node, codes: ir.Value, scales: ir.Value) -> None:
    """Gather(W, ids): codes (rows, columns) uint8 and scales (rows, 1) of the rows alone."""
    ids = node.inputs[1]
    chosen = insert_before(model, node, "Gather", [codes, ids], axis=0)
    wide = insert_before(model, node, "Cast", [chosen], to=int(ir.DataType.FLOAT))
    center = add_constant(model, f"{_CENTER_NAME}.float", CENTER, np.float32)
    centered = insert_before(model, node, "Sub", [wide, center])
    factors = insert_before(model, node, "Gather", [scales, ids], axis=0)
    replace(model, node, "Mul", [centered, factors])


def _round(model: ir.Model, source: ir.Value) -> Sequence[ir.Value]:
    """The value's codes, scale and zero point; made once per value, right after it."""
    for use in source.uses():
        if use.node.op_type == _ROUNDED:
            return use.node.outputs
    return insert_after(model, source, _ROUNDED, outputs=3)
