"""Constant targets of Reshape and Expand: computed ones in, constants out where sizes are known.

Requires: shapes of traced values (run before :mod:`exporter.passes.node_names`).
Ensures: a Reshape target is a constant wherever each of its sizes is known, is the input's own size at that place
    (0), or is the only one left (-1); an Expand target likewise, with 1 where the input's size stays.

Engines that need it: nxrt and IREE lose the rank of a value reshaped to a computed target; compilers for fixed shapes
fold nothing then; and each computed target costs ONNX Runtime a kernel launch or two per layer.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
import onnx_ir.passes.common as common

from kvparity.exporter.passes.conditions import graph_pass, shaped
from kvparity.exporter.passes.match import add_target, reshape_target, same_size

__all__ = ["constant_targets"]


def _none_computed(model: ir.Model) -> Iterator[str]:
    yield from (f"{node.outputs[0].name}'s shape is computed" for node in model.graph if _known(node) is not None)


@graph_pass(requires=[shaped], ensures=[_none_computed])
def constant_targets(model: ir.Model) -> None:
    """Give Reshape and Expand constant targets."""
    for node in model.graph:
        sizes = _known(node)
        if sizes is not None:
            node.replace_input_with(1, add_target(model, *sizes))
    common.RemoveUnusedNodesPass()(model)


def _known(node: ir.Node) -> list[int] | None:
    """The sizes of a target that is computed and need not be."""
    if node.op_type not in ("Reshape", "Expand"):
        return None
    data, target, out = node.inputs[0], node.inputs[1], node.outputs[0]
    if data is None or target is None or target.const_value is not None or data.shape is None or out.shape is None:
        return None
    return (reshape_target if node.op_type == "Reshape" else _expand_target)(data.shape, out.shape)


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
