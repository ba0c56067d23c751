"""Folds shape arithmetic and constants, never a weight.

Requires: weights are initializers without values, named in ``weights``.
Ensures: no CastLike, no no-op Cast, no unused node; weights untouched; constants are initializers.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import optimizer

__all__ = ["drop_casts", "simplify"]

_LIMIT = 4096  # elements: larger constants are left alone


def simplify(model: ir.Model, weights: Iterable[str]) -> None:
    """Apply the pass: weights become graph inputs while the optimiser runs, so that it cannot touch them."""
    graph = model.graph
    ports = list(graph.inputs)
    set_aside = [graph.initializers.pop(name) for name in sorted(weights)]
    graph.inputs.extend(set_aside)
    optimizer.optimize_ir(
        model, num_iterations=3, onnx_shape_inference=False, input_size_limit=_LIMIT, output_size_limit=_LIMIT
    )
    _drop_noop_casts(model)
    common.IdentityEliminationPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    graph.inputs.clear()
    graph.inputs.extend(ports)
    for value in set_aside:
        if value.uses():
            graph.initializers[value.name or ""] = value


def drop_casts(model: ir.Model) -> None:
    """Resolve CastLike and remove casts to the dtype a value already has; run before probes name values."""
    _drop_castlike(model)
    _drop_noop_casts(model)


def _drop_castlike(model: ir.Model) -> None:
    """CastLike(x, y) is Cast(x, to=dtype of y); dtypes are known after tracing."""
    for node in list(model.graph):
        if node.op_type != "CastLike":
            continue
        value, like = node.inputs[0], node.inputs[1]
        assert value is not None
        assert like is not None
        if like.dtype is None:
            continue
        cast = ir.node("Cast", [value], attributes={"to": int(like.dtype)})
        cast.outputs[0].dtype = like.dtype
        model.graph.insert_before(node, cast)
        node.outputs[0].replace_all_uses_with(cast.outputs[0], replace_graph_outputs=True)
        model.graph.remove(node, safe=True)


def _drop_noop_casts(model: ir.Model) -> None:
    for node in list(model.graph):
        if node.op_type != "Cast":
            continue
        source = node.inputs[0]
        assert source is not None
        if source.dtype == node.attributes["to"].as_int() and not node.outputs[0].is_graph_output():
            node.outputs[0].replace_all_uses_with(source)
            model.graph.remove(node, safe=True)
