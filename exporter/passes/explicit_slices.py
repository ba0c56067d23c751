"""Spells shapes and slices the way that every engine reads.

Requires: shapes of traced values (run before :mod:`exporter.passes.node_names`).
Ensures: no Reshape with ``allowzero``; no Slice end of INT64_MAX where the real end is known.

Engines that need it: OpenCV and ONNX-to-C compilers read INT64_MAX ends and ``allowzero`` wrongly or not at all. No
reshape of a decoder meets a dimension of 0: batch, sequence and rows with this call's tokens are all at least 1.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

__all__ = ["plain_shapes"]

_OPEN_END = np.iinfo(np.int64).max


def plain_shapes(model: ir.Model) -> None:
    """Apply the pass."""
    for node in model.graph:
        if node.op_type == "Reshape":
            node.attributes.pop("allowzero", None)
        elif node.op_type == "Slice":
            _close(model, node)


def _close(model: ir.Model, node: ir.Node) -> None:
    data, ends, axes = node.inputs[0], node.inputs[2], node.inputs[3] if len(node.inputs) > 3 else None
    if data is None or ends is None or ends.const_value is None or axes is None or axes.const_value is None:
        return
    end, axis = ends.const_value.numpy().ravel(), axes.const_value.numpy().ravel()
    if data.shape is None or end.size != 1 or end[0] != _OPEN_END:
        return
    size = data.shape[int(axis[0])]
    if not isinstance(size, int):
        return
    name = f"end_{size}"
    if name not in model.graph.initializers:
        model.graph.register_initializer(
            ir.Value(name=name, const_value=ir.tensor(np.asarray([size], np.int64), name=name))
        )
    node.replace_input_with(2, model.graph.initializers[name])
