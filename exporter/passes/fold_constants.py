"""Constant folding: a traced graph in, the same graph without computed constants out; weights are never touched.

Requires: weights are initializers without values, named in ``weights``.
Ensures: no CastLike, no no-op Cast, no unused node; weights untouched; constants are initializers.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import optimizer

from kvparity.exporter.passes.conditions import graph_pass, lacks

__all__ = ["drop_casts", "dtype_of", "simplify"]

_LIMIT = 4096  # elements: larger constants are left alone
_ROUNDS = 4  # folding shape arithmetic settles in two or three
TORCHLIB_OPSET = 18  # as in kvparity.exporter.trace.capture, which would bring torch here
_OPEN_END = np.iinfo(np.int64).max


@graph_pass(ensures=[lacks("CastLike", "Constant")])
def simplify(model: ir.Model, weights: Iterable[str]) -> None:
    """Fold constants; weights are graph inputs meanwhile, so that nothing can touch them.

    onnxscript's ``optimizer.optimize`` would do, but its pattern matcher takes ten times as long as everything here.
    """
    graph = model.graph
    ports = list(graph.inputs)
    set_aside = [graph.initializers.pop(name) for name in sorted(weights)]
    graph.inputs.extend(set_aside)
    common.InlinePass()(model)
    for _ in range(_ROUNDS):
        folded = optimizer.fold_constants(
            model, onnx_shape_inference=False, input_size_limit=_LIMIT, output_size_limit=_LIMIT
        )
        common.RemoveUnusedNodesPass()(model)
        if not folded.modified:
            break
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.DeduplicateInitializersPass()(model)
    _drop_noop_casts(model)
    _drop_noops(model)
    common.IdentityEliminationPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.NameFixPass()(model)
    graph.inputs.clear()
    graph.inputs.extend(ports)
    for value in set_aside:
        if value.uses():
            graph.initializers[value.name or ""] = value


@graph_pass()
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
        dtype = dtype_of(like)
        if dtype is None:
            continue
        cast = ir.node("Cast", [value], attributes={"to": int(dtype)})
        cast.outputs[0].dtype = dtype
        model.graph.insert_before(node, cast)
        node.outputs[0].replace_all_uses_with(cast.outputs[0], replace_graph_outputs=True)
        model.graph.remove(node, safe=True)


def _drop_noop_casts(model: ir.Model) -> None:
    for node in list(model.graph):
        if node.op_type != "Cast":
            continue
        source = node.inputs[0]
        assert source is not None
        if dtype_of(source) == node.attributes["to"].as_int() and not node.outputs[0].is_graph_output():
            node.outputs[0].replace_all_uses_with(source)
            model.graph.remove(node, safe=True)


def _drop_noops(model: ir.Model) -> None:
    """Remove multiplications by 1 and slices that keep everything."""
    for node in list(model.graph):
        source = _unchanged(node)
        output = node.outputs[0]
        if source is None or (output.is_graph_output() and source.producer() is None):
            continue
        output.replace_all_uses_with(source, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)


def _unchanged(node: ir.Node) -> ir.Value | None:
    """The input that a node returns as it is, or None."""
    if node.op_type == "Mul":
        for index in (0, 1):
            factor, other = node.inputs[index], node.inputs[1 - index]
            if factor is not None and other is not None and _elements(factor) == [1] and not factor.shape:
                return other
    if node.op_type == "Slice" and len(node.inputs) >= 3:
        starts, ends, steps = node.inputs[1], node.inputs[2], node.inputs[4] if len(node.inputs) > 4 else None
        if _elements(starts) == [0] and _elements(ends) == [_OPEN_END] and (steps is None or _elements(steps) == [1]):
            return node.inputs[0]
    return None


def _elements(value: ir.Value | None) -> list[float] | None:
    """The elements of a small constant."""
    tensor = None if value is None else value.const_value
    if tensor is None or isinstance(tensor, ir.ExternalTensor) or tensor.size > 1:
        return None
    return np.asarray(tensor.numpy()).ravel().tolist()


def dtype_of(value: ir.Value) -> ir.DataType | None:
    """The dtype of a value; where torch's translation leaves it out, that of the inputs that share its type."""
    producer = value.producer()
    if value.dtype is not None or producer is None or producer.domain not in ("", "ai.onnx"):
        return value.dtype
    if producer.op_type == "Cast":
        return ir.DataType(producer.attributes["to"].as_int())
    schema = onnx.defs.get_schema(producer.op_type, TORCHLIB_OPSET, "")
    own = schema.outputs[0].type_str
    for place, source in enumerate(producer.inputs):
        formal = schema.inputs[min(place, len(schema.inputs) - 1)]
        found = dtype_of(source) if source is not None and formal.type_str == own else None
        if found is not None:
            return found
    return None
