"""Reshape and Slice as every engine reads them: ``allowzero`` and open ends in, plain sizes out.

Requires: shapes of traced values (run before :mod:`exporter.passes.node_names`).
Ensures: no Reshape with ``allowzero``; no Slice end of INT64_MAX where the real end is known.

Engines that need it: OpenCV and ONNX-to-C compilers read INT64_MAX ends and ``allowzero`` wrongly or not at all. No
reshape of a decoder meets a dimension of 0: batch, sequence and rows with this call's tokens are all at least 1.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from kvparity.exporter.passes.conditions import graph_pass, shaped
from kvparity.exporter.passes.match import add_constant, constant

__all__ = ["plain_shapes"]

_OPEN_END = np.iinfo(np.int64).max


def _plain(model: ir.Model) -> Iterator[str]:
    yield from (f"{node.outputs[0].name} has allowzero" for node in model.graph if "allowzero" in node.attributes)
    yield from (f"{node.outputs[0].name} has an open end" for node in model.graph if _open_end(node) is not None)


@graph_pass(requires=[shaped], ensures=[_plain])
def plain_shapes(model: ir.Model) -> None:
    """Leave ``allowzero`` out, and close slices whose end is known."""
    for node in model.graph:
        if node.op_type == "Reshape":
            node.attributes.pop("allowzero", None)
        size = _open_end(node)
        if size is not None:
            node.replace_input_with(2, add_constant(model, f"end_{size}", [size]))


def _open_end(node: ir.Node) -> int | None:
    """The known size of the axis that a Slice leaves open at its end."""
    if node.op_type != "Slice" or len(node.inputs) < 4:
        return None
    data, end, axis = node.inputs[0], constant(node.inputs[2]), constant(node.inputs[3])
    if data is None or data.shape is None or end != [_OPEN_END] or not axis:
        return None
    size = data.shape[int(axis[0])]
    return size if isinstance(size, int) else None
