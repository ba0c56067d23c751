"""Makes a traced program translatable without re-tracing it.

``torch.onnx.export`` decomposes by tracing the program twice more, two thirds of an export's time. Decoders need
little of that: casts spelled in one way or spelled out, in-place arithmetic spelled out of place, no-ops removed.
Whatever needs more is left to torch (see :func:`exporter.trace.capture.capture`).
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch._prims_common import ELEMENTWISE_TYPE_PROMOTION_KIND, elementwise_dtypes

from kvparity.exporter.trace.in_place_operators import out_of_place
from kvparity.exporter.trace.record.private_names import MARK

__all__ = ["fold_scalars", "normalise"]

_aten = torch.ops.aten
_NOOPS = {
    _aten.contiguous.default,
    _aten.dropout.default,
    _aten.detach.default,
    _aten.detach_.default,
    _aten.alias.default,
    _aten.clone.default,
    _aten.lift_fresh_copy.default,
}
_CASTS = {_aten.to.dtype, _aten.to.device, _aten.to.dtype_layout, _aten.to.other, _aten.type_as.default}
_CHECKS = {
    _aten._assert_tensor_metadata.default,
    _aten._assert_scalar.default,
    _aten._assert_async.msg,
    _aten.sym_constrain_range_for_size.default,
}


def normalise(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Rewrite a program in place so that every node has a direct ONNX translation, where that is simple.

    Raises:
        UnsupportedError: A view is written to, or an operator writes in a way that has no plain spelling.
    """
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _CHECKS:
            graph.erase_node(node)
        elif node.target in _NOOPS:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target in _CASTS:
            _cast(graph, node)
        elif isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            _spell_out(node)
    for node in list(graph.nodes):
        if node.op == "call_function" and _is_pointwise(node.target):
            _promote(graph, node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    for spec, node in zip(program.graph_signature.output_specs, next(iter(reversed(graph.nodes))).args[0], strict=True):
        if isinstance(node, torch.fx.Node):
            spec.arg.name = node.name  # an output may have been a cast to the dtype that it had
    return program


def fold_scalars(program: torch.export.ExportedProgram) -> None:
    """Compute what depends on constant scalars alone: Gemma 3n takes the inverse error function of its sparsity."""
    graph, known = program.graph_module.graph, _scalar_constants(program)
    for node in list(graph.nodes):
        if node.op != "call_function" or not _is_pure(node.target):
            continue
        inputs, value = node.all_input_nodes, node.meta.get("val")
        if not inputs or not all(source in known for source in inputs):
            continue
        args, kwargs = torch.fx.map_arg((node.args, dict(node.kwargs)), known.__getitem__)
        known[node] = node.target(*args, **kwargs)
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim == 0:
            with graph.inserting_after(node):
                made = graph.call_function(_aten.scalar_tensor.default, (known[node].item(),), {"dtype": value.dtype})
            made.meta = dict(node.meta)
            node.replace_all_uses_with(made)
            known[made] = known[node]
    program.graph_module.recompile()


def _is_pure(target: Any) -> bool:
    if target in (operator.getitem, _aten.detach_.default):
        return True
    return isinstance(target, torch._ops.OpOverload) and not target._schema.is_mutable


def _scalar_constants(program: torch.export.ExportedProgram) -> dict[Any, torch.Tensor]:
    """Nodes of the program's constant tensors that have one element and a value."""
    names = program.graph_signature.inputs_to_lifted_tensor_constants
    known: dict[Any, torch.Tensor] = {}
    for node in program.graph_module.graph.nodes:
        tensor = program.constants.get(names.get(node.name, "")) if node.op == "placeholder" else None
        if isinstance(tensor, torch.Tensor) and tensor.ndim == 0:
            real = getattr(tensor, "constant", tensor)
            if isinstance(real, torch.Tensor) and type(real) is torch.Tensor:
                known[node] = real
    return known


def _cast(graph: Any, node: Any) -> None:
    source = node.args[0]
    dtype = node.meta["val"].dtype
    if source.meta["val"].dtype == dtype:
        node.replace_all_uses_with(source)
        graph.erase_node(node)
        return
    node.target = _aten._to_copy.default
    node.args, node.kwargs = (source,), {"dtype": dtype}


def _is_pointwise(target: Any) -> bool:
    return torch.Tag.pointwise in getattr(target, "tags", ()) and target is not _aten._to_copy.default


def _promote(graph: Any, node: Any) -> None:
    """Spell out the casts that torch implies; ONNX has no operators of mixed types.

    Whole numbers that meet fractions (Ministral 3 divides positions), and float16 that meets float32, become what
    torch computes in.
    """
    spared = {_aten.where: 0, _aten.masked_fill: 1}.get(node.target.overloadpacket)  # a condition
    places = [
        place
        for place, arg in enumerate(node.args)
        if place != spared and isinstance(arg, torch.fx.Node) and isinstance(arg.meta.get("val"), torch.Tensor)
    ]
    values = [node.args[place].meta["val"] for place in places]
    wanted = node.meta["val"].dtype
    if not wanted.is_floating_point:  # a comparison, or whole numbers alone
        if len({value.dtype for value in values}) < 2 or not any(value.is_floating_point() for value in values):
            return
        wanted = elementwise_dtypes(*values, type_promotion_kind=ELEMENTWISE_TYPE_PROMOTION_KIND.DEFAULT)[1]
    for place, value in zip(places, values, strict=True):
        if value.dtype != wanted:
            with graph.inserting_before(node):
                cast = graph.call_function(_aten._to_copy.default, (node.args[place],), {"dtype": wanted})
            cast.meta = {**node.meta, "val": _as_dtype(value, wanted)}
            node.update_arg(place, cast)


def _as_dtype(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A tensor of that dtype that knows as much of its sizes (:class:`exporter.trace.record.recorder.Recorder`)."""
    made = value.to(dtype)
    if MARK in vars(value):
        vars(made)[MARK] = vars(value)[MARK]
    return made


def _spell_out(node: Any) -> None:
    """``x.mul_(y)`` becomes ``x.mul(y)``, and every later reader of ``x`` reads the result."""
    target = node.args[0]
    node.target = out_of_place(node.target, target)
    later = False
    for user in list(node.graph.nodes):
        if later and target in user.all_input_nodes:
            user.replace_input_with(target, node)
        later = later or user is node
