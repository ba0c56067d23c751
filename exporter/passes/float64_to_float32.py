"""Float32 graph: a graph traced in float64 in, float32 out, with the float64 digits of every constant that rounds.

Requires: every floating-point value is float64.
Ensures: none is; the model's metadata holds, under :data:`FLOAT64_CONSTANTS`, ``{initializer: [hex floats]}``, so that
the float64 evaluation of the shipped graph does not inherit the constants' rounding.
"""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from kvparity.exporter.contract.spec import FLOAT64_CONSTANTS
from kvparity.exporter.passes.conditions import digits_round, graph_pass, without_float64

__all__ = ["MOST", "lower_to_float32"]

MOST = 1024  # elements of a constant whose float64 values are kept


def _narrow(wide: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Float32 nearest; what is finite stays finite, such as the smallest float64 that a model masks scores with."""
    most = float(np.finfo(np.float32).max)
    return np.where(np.isfinite(wide), np.clip(wide, -most, most), wide).astype(np.float32)


@graph_pass(ensures=[without_float64, digits_round])
def lower_to_float32(model: ir.Model) -> None:
    """Make every float64 value, constant and cast float32."""
    kept: dict[str, list[str]] = {}
    for name, value in model.graph.initializers.items():
        if value.const_value is not None and value.const_value.dtype == ir.DataType.DOUBLE:
            wide = np.asarray(value.const_value.numpy(), np.float64)
            narrow = _narrow(wide)
            if wide.size <= MOST and not np.array_equal(narrow.astype(np.float64), wide):
                kept[name] = [float(x).hex() for x in wide.ravel()]
            value.const_value = ir.tensor(narrow, name=name)
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    values += [output for node in model.graph for output in node.outputs]
    for value in values:
        if value.dtype == ir.DataType.DOUBLE:
            value.dtype = ir.DataType.FLOAT
    for node in model.graph:
        for attribute in list(node.attributes.values()):
            if attribute.type == ir.AttributeType.INT and attribute.name in ("to", "dtype"):
                if attribute.as_int() == ir.DataType.DOUBLE:
                    node.attributes[attribute.name] = ir.AttrInt64(attribute.name, int(ir.DataType.FLOAT))
            if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == ir.DataType.DOUBLE:
                wide = np.asarray(attribute.as_tensor().numpy())
                node.attributes[attribute.name] = ir.AttrTensor(attribute.name, ir.tensor(_narrow(wide)))
    if kept:
        model.metadata_props[FLOAT64_CONSTANTS] = json.dumps(kept, sort_keys=True)
