"""Multi-query attention's one head: Unsqueeze, Expand and Reshape in, one Expand out.

Requires: shapes of traced values.
Ensures: (batch, 1, rows, size) becomes (batch, heads, rows, size) by an Expand alone. The product itself could
    broadcast the head, but MNN multiplies wrongly then where the batch has two rows or more (off by 19).
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
import onnx_ir.passes.common as common

from kvparity.exporter.passes.conditions import graph_pass, shaped
from kvparity.exporter.passes.match import add_target, made_by, replace, same_size

__all__ = ["repeat_one_head"]


def _one_expand(model: ir.Model) -> Iterator[str]:
    yield from (f"{node.outputs[0].name} repeats one head" for node in model.graph if _repeated(node) is not None)


@graph_pass(requires=[shaped], ensures=[_one_expand])
def repeat_one_head(model: ir.Model) -> None:
    """Expand (batch, 1, rows, size) to (batch, heads, rows, size) directly."""
    for node in list(model.graph):
        found = _repeated(node)
        if found is not None:
            source, heads = found
            replace(model, node, "Expand", [source, add_target(model, 1, heads, 1, 1)])
    common.RemoveUnusedNodesPass()(model)


def _repeated(node: ir.Node) -> tuple[ir.Value, int] | None:
    """The one head that a Reshape of an Expand of an Unsqueeze repeats, and how often."""
    expand = made_by(node.inputs[0], "Expand") if node.op_type == "Reshape" else None
    wide = made_by(expand.inputs[0], "Unsqueeze") if expand is not None else None
    source = wide.inputs[0] if wide is not None else None
    out = node.outputs[0].shape
    if source is None or source.shape is None or out is None or len(source.shape) != 4 or len(out) != 4:
        return None
    heads, same = out[1], all(same_size(source.shape[axis], out[axis]) for axis in (0, 2, 3))
    return (source, heads) if source.shape[1] == 1 and isinstance(heads, int) and same else None
