"""Gives Reshape and Expand constant targets, so that no shape is computed while the graph runs.

Requires: shapes of traced values (run before :mod:`exporter.passes.node_names`).
Ensures: a Reshape target is a constant wherever each of its sizes is known, is the input's own size at that place
    (0), or is the only one left (-1); an Expand target likewise, with 1 where the input's size stays.

Engines that need it: nxrt and IREE lose the rank of a value reshaped to a computed target; compilers for fixed shapes
fold nothing then; and each computed target costs ONNX Runtime a kernel launch or two per layer.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from kvparity.exporter.passes.match import add_target, reshape_target, same_size

__all__ = ["constant_targets"]


def constant_targets(model: ir.Model) -> None:
    """Apply the pass."""
    for node in model.graph:
        if node.op_type not in ("Reshape", "Expand"):
            continue
        data, target, out = node.inputs[0], node.inputs[1], node.outputs[0]
        if data is None or target is None or target.const_value is not None or data.shape is None or out.shape is None:
            continue
        find = reshape_target if node.op_type == "Reshape" else _expand_target
        sizes = find(data.shape, out.shape)
        if sizes is not None:
            node.replace_input_with(1, add_target(model, *sizes))
    common.RemoveUnusedNodesPass()(model)


def _expand_target(data: ir.Shape, out: ir.Shape) -> list[int] | None:
    """Sizes, 1 for "as the input"; None where a size that changes is not known."""
    offset = len(out) - len(data)
    sizes: list[int] = []
    for place, size in enumerate(out):
        if place >= offset and same_size(data[place - offset], size):
            sizes.append(1)
        elif isinstance(size, int):
            sizes.append(size)
        else:
            return None
    return sizes
