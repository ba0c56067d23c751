"""Bounds of slices: lengths computed as scalars in, as vectors of one element, which Slice takes, out.

Requires: lengths start as ``Squeeze(Shape(x))`` of one dimension.
Ensures: where such a length only meets arithmetic and then becomes a vector again, it stays one throughout.
"""

from __future__ import annotations

import onnx_ir as ir

from kvparity.exporter.passes.conditions import graph_pass

__all__ = ["vector_lengths"]

_ARITHMETIC = {"Add", "Sub", "Mul", "Max", "Min"}


@graph_pass()
def vector_lengths(model: ir.Model) -> None:
    """Keep lengths vectors throughout, unless something reads one as a scalar."""
    starts = [node for node in model.graph if _is_length(node)]
    reached: dict[ir.Node, None] = {}
    ends: dict[ir.Node, None] = {}
    pending = [node.outputs[0] for node in starts]
    while pending:
        for user, _ in pending.pop().uses():
            if user.op_type in _ARITHMETIC and user not in reached:
                reached[user] = None
                pending.append(user.outputs[0])
            elif user.op_type in ("Reshape", "Unsqueeze"):
                ends[user] = None
            elif user not in reached:
                return  # something reads a length as a scalar
    for node in (*starts, *ends):
        source = node.inputs[0]
        assert source is not None
        node.outputs[0].replace_all_uses_with(source)
        model.graph.remove(node, safe=True)
    for node in reached:
        node.outputs[0].shape = ir.Shape([1])


def _is_length(node: ir.Node) -> bool:
    producer = node.inputs[0].producer() if node.op_type == "Squeeze" and node.inputs[0] is not None else None
    if producer is None or producer.op_type != "Shape":
        return False
    start, end = (producer.attributes.get(name) for name in ("start", "end"))
    return start is not None and end is not None and end.as_int() - start.as_int() == 1
