"""Gives Reshape and Expand constant targets, so that no shape is computed while the graph runs.

Requires: shapes of traced values (run before :mod:`exporter.passes.tidy`).
Ensures: a Reshape target is a constant wherever each of its sizes is known, is the input's own size at that place
    (0), or is the only one left (-1); an Expand target likewise, with 1 where the input's size stays.

Engines that need it: nxrt and IREE lose the rank of a value reshaped to a computed target; compilers for fixed shapes
fold nothing then; and each computed target costs ONNX Runtime a kernel launch or two per layer.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

__all__ = ["constant_targets"]


def constant_targets(model: ir.Model) -> None:
    """Apply the pass."""
    for node in model.graph:
        if node.op_type not in ("Reshape", "Expand"):
            continue
        data, target, out = node.inputs[0], node.inputs[1], node.outputs[0]
        if data is None or target is None or target.const_value is not None or data.shape is None or out.shape is None:
            continue
        find = _reshape_target if node.op_type == "Reshape" else _expand_target
        sizes = find(data.shape, out.shape)
        if sizes is not None:
            node.replace_input_with(1, _constant(model, sizes))
    common.RemoveUnusedNodesPass()(model)


def _reshape_target(data: ir.Shape, out: ir.Shape) -> list[int] | None:
    """Sizes, 0 for "as the input at this place", -1 for "what is left"; None where two are left."""
    sizes = [
        size if isinstance(size, int) else 0 if place < len(data) and _same(data[place], size) else -1
        for place, size in enumerate(out)
    ]
    return sizes if sizes.count(-1) <= 1 else None


def _same(one: int | ir.SymbolicDim, other: int | ir.SymbolicDim) -> bool:
    """Whether two sizes are known to be equal; two unknown ones are not."""
    return one == other and getattr(one, "value", one) is not None


def _expand_target(data: ir.Shape, out: ir.Shape) -> list[int] | None:
    """Sizes, 1 for "as the input"; None where a size that changes is not known."""
    offset = len(out) - len(data)
    sizes: list[int] = []
    for place, size in enumerate(out):
        if place >= offset and _same(data[place - offset], size):
            sizes.append(1)
        elif isinstance(size, int):
            sizes.append(size)
        else:
            return None
    return sizes


def _constant(model: ir.Model, sizes: list[int]) -> ir.Value:
    name = "shape_" + "_".join(str(size).replace("-", "m") for size in sizes)
    if name not in model.graph.initializers:
        tensor = ir.tensor(np.asarray(sizes, np.int64), name=name)
        model.graph.register_initializer(ir.Value(name=name, const_value=tensor))
    return model.graph.initializers[name]
