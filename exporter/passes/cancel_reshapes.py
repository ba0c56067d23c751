"""Transpose and Reshape that cancel out: a graph with them in, one without out.

Requires: constant Reshape targets where sizes are known (constant_shapes); shapes of traced values.
Ensures: no Transpose of a Transpose that restores the order; no Transpose that only moves sizes of 1, where a Reshape
    can say it; no Reshape of a Reshape, where the target stays a constant; norms over an axis that a Reshape keeps come
    before it, so that it meets the Reshape after.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from kvparity.exporter.passes.conditions import graph_pass, shaped
from kvparity.exporter.passes.match import add_target, constant, made_by, replace, reshape_target, same_size

__all__ = ["drop_reshapes"]

_Size = int | ir.SymbolicDim


@graph_pass(requires=[shaped])
def drop_reshapes(model: ir.Model) -> None:
    """Drop what the next change of layout undoes."""
    for node in list(model.graph):
        if node.op_type == "RMSNormalization":
            _normalise_first(model, node)
        elif node.op_type == "Transpose" and not _cancel(node):
            _say_reshape(model, node)
    for node in list(model.graph):
        if node.op_type == "Reshape":
            while _look_through(model, node):
                pass
            _drop_if_same(node)
    common.RemoveUnusedNodesPass()(model)


def _normalise_first(model: ir.Model, norm: ir.Node) -> None:
    """Norm(Reshape(x)) becomes Reshape(Norm(x)) where x has the same last axis."""
    reshape, out = made_by(norm.inputs[0], "Reshape"), norm.outputs[0]
    source = reshape.inputs[0] if reshape is not None else None
    if reshape is None or source is None or source.shape is None or out.shape is None or len(out.shape) < 2:
        return
    if constant(reshape.inputs[1]) is None or source.shape[-1] != out.shape[-1] or out.is_graph_output():
        return
    attributes = {"axis": -1, "epsilon": norm.attributes["epsilon"].as_float()}
    early = ir.node("RMSNormalization", [source, norm.inputs[1]], attributes=attributes)
    early.outputs[0].type, early.outputs[0].shape = source.type, source.shape
    early.metadata_props.update(norm.metadata_props)
    model.graph.insert_before(norm, early)
    replace(model, norm, "Reshape", [early.outputs[0], reshape.inputs[1]])


def _order(node: ir.Node) -> list[int]:
    return list(node.attributes["perm"].as_ints())


def _cancel(node: ir.Node) -> bool:
    inner = made_by(node.inputs[0], "Transpose")
    if inner is None or node.outputs[0].is_graph_output():
        return False
    first, second = _order(inner), _order(node)
    source = inner.inputs[0]
    if source is None or [first[axis] for axis in second] != list(range(len(first))):
        return False
    node.outputs[0].replace_all_uses_with(source)
    return True


def _say_reshape(model: ir.Model, node: ir.Node) -> None:
    """A Transpose that only moves sizes of 1 is a Reshape; engines copy for the one and not for the other."""
    source, out = node.inputs[0], node.outputs[0]
    if source is None or source.shape is None or out.shape is None or not _moves_ones(source.shape, _order(node)):
        return
    target = reshape_target(source.shape, out.shape)
    if target is not None:
        replace(model, node, "Reshape", [source, add_target(model, *target)])


def _look_through(model: ir.Model, node: ir.Node) -> bool:
    """Let a Reshape read what the Reshape before it reads, where a constant target says the same there."""
    inner, out = made_by(node.inputs[0], "Reshape"), node.outputs[0]
    source = inner.inputs[0] if inner is not None else None
    if constant(node.inputs[1]) is None or source is None or source.shape is None or out.shape is None:
        return False
    target = reshape_target(source.shape, out.shape)
    if target is None:
        return False
    node.replace_input_with(0, source)
    node.replace_input_with(1, add_target(model, *target))
    return True


def _drop_if_same(node: ir.Node) -> None:
    source, out = node.inputs[0], node.outputs[0]
    if source is None or source.shape is None or out.shape is None or out.is_graph_output():
        return
    if len(source.shape) == len(out.shape) and all(map(same_size, source.shape, out.shape)):
        out.replace_all_uses_with(source)


def _moves_ones(shape: ir.Shape, order: list[int]) -> bool:
    kept = [axis for axis in order if shape[axis] != 1]
    return kept == sorted(kept)
