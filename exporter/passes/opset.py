"""Opset: a graph of torch's translations (opset 18) in, the same graph in the opset wanted out.

Requires: default domain at opset 18; axes of reductions are constants.
Ensures: default domain at the opset wanted; below 18, reductions carry their axes as an attribute and Split no
    ``num_outputs``.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from kvparity.exporter.contract.errors import ExportError
from kvparity.exporter.contract.spec import ExportOptions, GraphSpec
from kvparity.exporter.passes.conditions import graph_pass

__all__ = ["LINEAR_ATTENTION", "NEWEST", "OLDEST", "default_opset", "to_opset"]

OLDEST, NEWEST = 17, 27
LINEAR_ATTENTION = 27  # opset that LinearAttention came with
_OPSETS = {"bare": 17, "portable": 18, "modern": 23, "ort": 23}  # by profile
_CHANGED = {"DFT", "GridSample", "GroupNormalization"}  # mean something else after 18
_REDUCTIONS = {"ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp"}


def default_opset(options: ExportOptions, graph: GraphSpec) -> int:
    """Default-domain opset of a graph: its profile's, or that of TensorScatter or LinearAttention where it has them."""
    if options.profile == "modern" and graph.recurrent:
        return LINEAR_ATTENTION
    scatters = (options.profile, options.layout) in (("modern", "static"), ("ort", "shared"))
    return 24 if scatters else _OPSETS[options.profile]


def _spelled(model: ir.Model) -> Iterator[str]:
    if model.opset_imports[""] < 18:
        nodes = (node for node in model.graph if node.op_type in _REDUCTIONS)
        yield from (f"{node.outputs[0].name} takes its axes as an input" for node in nodes if len(node.inputs) > 1)


@graph_pass(ensures=[_spelled])
def to_opset(model: ir.Model, wanted: int) -> None:
    """Set the default domain's opset, and spell operators as it does.

    Raises:
        ExportError: The opset is out of range, or an operator of the graph has no spelling in it.
    """
    have = model.opset_imports[""]
    if not OLDEST <= wanted <= NEWEST:
        raise ExportError(f"--opset {wanted}: expected {OLDEST} to {NEWEST}")
    if wanted > have and (found := {node.op_type for node in model.graph} & _CHANGED):
        raise ExportError(f"--opset {wanted}: {sorted(found)[0]} changed its meaning after opset {have}")
    if wanted < have:
        for node in model.graph:
            if node.op_type in _REDUCTIONS:
                _axes_as_attribute(node)
            elif node.op_type == "Split":
                node.attributes.pop("num_outputs", None)
    model.opset_imports[""] = wanted
    for node in model.graph:
        node.version = None


def _axes_as_attribute(node: ir.Node) -> None:
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if axes is not None:
        if axes.const_value is None:
            raise ExportError(f"{node.op_type} with computed axes has no spelling below opset 18")
        node.attributes["axes"] = ir.AttrInt64s("axes", axes.const_value.numpy().ravel().tolist())
    node.attributes.pop("noop_with_empty_axes", None)
    node.resize_inputs(1)
