"""SkipSimplifiedLayerNormalization (com.microsoft): a residual Add and its RMSNormalization in, one operator out.

Requires: norms are RMSNormalization over the last axis (:mod:`exporter.passes.rms_normalization`).
Ensures: where a sum of two values of rank 3 is normalised, one SkipSimplifiedLayerNormalization gives both.
"""

from __future__ import annotations

import onnx_ir as ir

from kvparity.exporter.passes.conditions import graph_pass, shaped
from kvparity.exporter.passes.match import made_by

__all__ = ["fuse_skips"]


@graph_pass(requires=[shaped])
def fuse_skips(model: ir.Model) -> None:
    """Fuse sums of rank 3 with the norms that read them."""
    for norm in list(model.graph):
        total = made_by(norm.inputs[0], "Add") if norm.op_type == "RMSNormalization" else None
        if total is None or total.outputs[0].is_graph_output() or norm.outputs[0].is_graph_output():
            continue
        if not all(_same(value, total.outputs[0]) for value in total.inputs):
            continue
        fused = ir.node(
            "SkipSimplifiedLayerNormalization",
            [total.inputs[0], total.inputs[1], norm.inputs[1]],
            attributes={"epsilon": norm.attributes["epsilon"].as_float()},
            domain="com.microsoft",
            num_outputs=4,
        )
        normalised, unused, spare, summed = fused.outputs
        unused.name, spare.name = "", ""
        for new, old in ((normalised, norm.outputs[0]), (summed, total.outputs[0])):
            new.name, new.type, new.shape = old.name, old.type, old.shape
            new.metadata_props.update(old.metadata_props)
        fused.metadata_props.update(norm.metadata_props)
        model.graph.insert_before(total, fused) if _ready(total, norm) else model.graph.insert_before(norm, fused)
        norm.outputs[0].replace_all_uses_with(normalised)
        total.outputs[0].replace_all_uses_with(summed)
        model.graph.remove([norm, total], safe=True)
        model.opset_imports.setdefault("com.microsoft", 1)


def _ready(total: ir.Node, norm: ir.Node) -> bool:
    """Whether the norm's weight exists already where the sum is made: it is no other node's result."""
    weight = norm.inputs[1]
    return weight is not None and weight.producer() is None


def _same(value: ir.Value | None, total: ir.Value) -> bool:
    if value is None or value.shape is None or total.shape is None or len(total.shape) != 3:
        return False
    return list(value.shape) == list(total.shape)
