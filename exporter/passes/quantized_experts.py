"""GatherBlockQuantized for experts: reads of their weights in, codes unpacked where they are read out.

A prefill unpacks all experts, a decode the chosen ones.

ONNX Runtime's QMoE is no way on a CPU: its kernel takes the interleaved SwiGLU of gpt-oss and no gate of another kind
(GeGLU of Gemma), routes by a softmax of its own, and knows no scale per expert. So GatherBlockQuantized unpacks, and
the graph multiplies as before: a decode step reads and unpacks the chosen experts only.

Requires: experts are used by GatherND or Gather along the first axis, or as a whole.
Ensures: no use of the weight is left.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from kvparity.exporter.passes.match import add_constant

__all__ = ["unpack_experts"]

LookUp = Callable[[ir.Value], ir.Node]  # expert numbers (n,) to a node that makes (n, rows, columns)


def unpack_experts(model: ir.Model, value: ir.Value, look_up: LookUp) -> None:
    """Unpack one weight (experts, rows, columns) where it is read.

    Args:
        model: The graph.
        value: The weight.
        look_up: Makes the node that unpacks experts.
    """
    whole: ir.Value | None = None
    for node, read in _readers(model, value):
        ids = _chosen(model, node, read)
        if ids is not None:
            made = look_up(ids)
            model.graph.insert_before(node, made)
            _take_over(made.outputs[0], node.outputs[0])
            node.outputs[0].replace_all_uses_with(made.outputs[0])
            model.graph.remove(node, safe=True)
            continue
        if whole is None:
            made = look_up(_every(model, value))
            model.graph.insert_before(node, made)
            whole = made.outputs[0]
            whole.type, whole.shape = value.type, value.shape
        for place, source in enumerate(node.inputs):
            if source is read:
                node.replace_input_with(place, whole)
    for use in list(value.uses()):  # transpositions that change nothing
        model.graph.remove(use.node, safe=True)


def _readers(model: ir.Model, value: ir.Value) -> list[tuple[ir.Node, ir.Value]]:
    """Nodes that read the weight and the value by which they do; a Transpose that changes nothing is looked through."""
    order = {node: place for place, node in enumerate(model.graph)}
    found: list[tuple[ir.Node, ir.Value]] = []
    for use in value.uses():
        node = use.node
        perm = node.attributes.get("perm") if node.op_type == "Transpose" else None
        if perm is not None and list(perm.as_ints()) == sorted(perm.as_ints()):
            found += [(inner.node, node.outputs[0]) for inner in node.outputs[0].uses()]
        else:
            found.append((node, value))
    return sorted(found, key=lambda item: order[item[0]])


def _chosen(model: ir.Model, node: ir.Node, read: ir.Value) -> ir.Value | None:
    """The expert numbers (n,) of a look-up, or None where a node reads every expert."""
    if node.inputs[0] is not read:
        return None
    ids = node.inputs[1] if len(node.inputs) > 1 else None
    if node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 0:
        return ids
    if node.op_type != "GatherND" or ids is None or node.attributes.get_int("batch_dims", 0) != 0:
        return None
    flat = ir.node("Reshape", [ids, add_constant(model, "experts.flat", [-1])])
    flat.metadata_props.update(node.metadata_props)
    model.graph.insert_before(node, flat)
    return flat.outputs[0]


def _every(model: ir.Model, value: ir.Value) -> ir.Value:
    """Numbers of all experts, as something that depends on the input.

    Of constants alone, ONNX Runtime would compute the unpacked weights when it loads the graph, and keep them.
    """
    assert value.shape is not None
    count = int(value.shape.numpy()[0])
    name = f"experts.every_{count}"
    known = next((item for item in model.graph if item.outputs[0].name == name), None)
    if known is not None:
        return known.outputs[0]
    ids = next(item for item in model.graph.inputs if item.name == "input_ids")
    flat = ir.node("Reshape", [ids, add_constant(model, "experts.flat", [-1])])
    first = ir.node("Gather", [flat.outputs[0], add_constant(model, "experts.first", [0])], attributes={"axis": 0})
    zero = ir.node("Sub", [first.outputs[0], first.outputs[0]])
    every = ir.node("Add", [zero.outputs[0], add_constant(model, f"experts.range_{count}", np.arange(count))])
    every.outputs[0].name = name
    model.graph.insert_before(model.graph.node(0), [flat, first, zero, every])
    return every.outputs[0]


def _take_over(new: ir.Value, old: ir.Value) -> None:
    new.name, new.type, new.shape = old.name, old.type, old.shape
    new.metadata_props.update(old.metadata_props)
