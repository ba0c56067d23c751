"""Div for Reciprocal: ``x * Reciprocal(y)`` in, ``x / y`` out, which leaves one operator fewer to support.

Requires: nothing.
Ensures: no Reciprocal is left: ``x * Reciprocal(y)`` is ``x / y``, and any other is ``1 / y``.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from kvparity.exporter.passes.conditions import graph_pass, lacks
from kvparity.exporter.passes.match import replace

__all__ = ["divide"]


@graph_pass(ensures=[lacks("Reciprocal")])
def divide(model: ir.Model) -> None:
    """Divide where the graph multiplies by a reciprocal."""
    for node in list(model.graph):
        if node.op_type == "Mul":
            _merge(model, node)
    common.RemoveUnusedNodesPass()(model)
    for node in list(model.graph):
        if node.op_type == "Reciprocal":
            source, out = node.inputs[0], node.outputs[0]
            assert source is not None
            assert out.dtype is not None
            one = ir.tensor(np.ones((), out.dtype.numpy()), name=f"one_{out.dtype.name.lower()}")
            if one.name not in model.graph.initializers:
                model.graph.register_initializer(ir.Value(name=one.name, const_value=one))
            replace(model, node, "Div", [model.graph.initializers[str(one.name)], source])


def _merge(model: ir.Model, node: ir.Node) -> None:
    for place in (0, 1):
        factor, other = node.inputs[place], node.inputs[1 - place]
        producer = factor.producer() if factor is not None else None
        if producer is not None and producer.op_type == "Reciprocal":
            replace(model, node, "Div", [other, producer.inputs[0]])
            return
