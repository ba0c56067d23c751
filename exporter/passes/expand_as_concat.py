"""Concat for Expand: repeats of one axis of size 1 in, joined copies out.

Requires: constant Expand targets where sizes are known (:mod:`exporter.passes.constant_shapes`).
Ensures: an Expand that repeats one axis of size 1 a constant number of times is a Concat.
"""

from __future__ import annotations

import onnx_ir as ir

from kvparity.exporter.passes.conditions import graph_pass, shaped

__all__ = ["repeat_by_concat"]


@graph_pass(requires=[shaped])
def repeat_by_concat(model: ir.Model) -> None:
    """Join copies where that is all an Expand does."""
    for node in list(model.graph):
        data = node.inputs[0] if node.op_type == "Expand" else None
        target = node.inputs[1].const_value if data is not None and node.inputs[1] is not None else None
        if data is None or target is None or data.shape is None:
            continue
        sizes = target.numpy().ravel().tolist()
        axes = [axis for axis, size in enumerate(sizes) if size != 1]
        if len(sizes) != len(data.shape) or len(axes) != 1 or data.shape[axes[0]] != 1:
            continue
        old = node.outputs[0]
        join = ir.node("Concat", [data] * sizes[axes[0]], attributes={"axis": axes[0]})
        out = join.outputs[0]
        out.name, out.type, out.shape = old.name, old.type, old.shape
        join.metadata_props.update(node.metadata_props)
        model.graph.insert_before(node, join)
        old.replace_all_uses_with(out, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
