"""GroupQueryAttention (com.microsoft): Attention nodes in, the operator with kernels for CUDA and WebGPU out.

Requires: attention is one Attention node of (batch, heads, rows, head_dim) with an explicit mask and scale 1.
Ensures: every such node whose keys and values have one head size is a GroupQueryAttention; where keys are the past and
    this call's, it joins them itself and its presents stand for the joined rows. The mask is its ``attention_bias``, so
    that windows and left padding mean what they mean in PyTorch in every version (``local_window_size`` does not).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir
import onnx_ir.passes.common as common

from kvparity.exporter.passes.conditions import graph_pass, shaped
from kvparity.exporter.passes.match import add_constant, add_target, made_by

__all__ = ["group_queries"]

Rows = tuple[ir.Value | None, ir.Value]  # past and new rows
_SWAP = [0, 2, 1, 3]


def _all_grouped(model: ir.Model) -> Iterator[str]:
    yield from (f"{node.outputs[0].name}" for node in model.graph if node.op_type == "Attention" and _fits(node))


@graph_pass(requires=[shaped], ensures=[_all_grouped])
def group_queries(model: ir.Model) -> None:
    """Replace every Attention node whose keys and values have one head size."""
    nodes = [node for node in list(model.graph) if node.op_type == "Attention" and _fits(node)]
    joined = {value: _parts(value) for node in nodes for value in node.inputs[1:3] if value is not None}
    lengths: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
    for node in nodes:
        _replace(model, node, joined, lengths)
    if nodes:
        model.opset_imports.setdefault("com.microsoft", 1)
        model.graph.sort()  # what reads the joined rows may have stood before the attention that makes them now
        common.RemoveUnusedNodesPass()(model)


def _fits(node: ir.Node) -> bool:
    shapes = [value.shape if value is not None else None for value in node.inputs[:3]]
    if any(shape is None or len(shape) != 4 for shape in shapes) or len(node.inputs) < 4:
        return False
    query, key, value = (shape for shape in shapes if shape is not None)
    sizes = (query[1], query[3], key[1])
    if not all(isinstance(size, int) for size in sizes) or not query[3] == key[3] == value[3]:
        return False
    _, new = _parts(node.inputs[1]) if node.inputs[1] is not None else (None, None)
    rows = None if new is None or new.shape is None else new.shape[2]
    return rows == query[2]  # it gives every new row a query


def _parts(value: ir.Value) -> Rows:
    concat = made_by(value, "Concat")
    if concat is not None and len(concat.inputs) == 2:
        past, new = concat.inputs
        if past is not None and new is not None and past.is_graph_input():
            return past, new
    return None, value


def _replace(
    model: ir.Model,
    node: ir.Node,
    joined: dict[ir.Value, Rows],
    lengths: dict[ir.Value, tuple[ir.Value, ir.Value]],
) -> None:
    query, key, value, mask = node.inputs[:4]
    assert query is not None
    assert key is not None
    assert value is not None
    assert mask is not None
    (heads, size), (kv_heads, _) = _head_sizes(query), _head_sizes(key)
    if mask not in lengths:
        lengths[mask] = _lengths(model, node, mask)
    (past_key, new_key), (past_value, new_value) = joined[key], joined[value]
    inputs = [_flat(model, node, query), _flat(model, node, new_key), _flat(model, node, new_value)]
    softcap = node.attributes["softcap"].as_float() if "softcap" in node.attributes else 0.0
    fused = _add(
        model,
        node,
        "GroupQueryAttention",
        [*inputs, past_key, past_value, *lengths[mask], None, None, None, mask],
        {"num_heads": heads, "kv_num_heads": kv_heads, "scale": 1.0, "softcap": softcap},
        outputs=3,
    )
    target = add_target(model, 0, 0, heads, size)
    parted = _add(model, node, "Reshape", [fused.outputs[0], target])
    swapped = _add(model, node, "Transpose", [parted.outputs[0]], {"perm": _SWAP})
    pairs = [(node.outputs[0], swapped.outputs[0])]
    if past_key is not None and past_value is not None:
        pairs += [(key, fused.outputs[1]), (value, fused.outputs[2])]
    for old, new in pairs:
        if old is not new:
            _take_place(old, new)
    for reader in swapped.outputs[0].consumers():  # heads are put back behind tokens: they never were before them
        if reader.op_type == "Transpose" and list(reader.attributes["perm"].as_ints()) == _SWAP:
            _take_place(reader.outputs[0], parted.outputs[0])


def _take_place(old: ir.Value, new: ir.Value) -> None:
    """Let everyone read ``new`` where they read ``old``, under its name, and with its probe."""
    if old.producer() is not None and old.producer() is new.producer():
        return
    new.name, new.type, new.shape = old.name, old.type, old.shape
    old.name = None
    new.metadata_props.update(old.metadata_props)
    old.metadata_props.clear()
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def _head_sizes(rows: ir.Value) -> tuple[int, int]:
    """(heads, head_dim) of (batch, heads, sequence, head_dim)."""
    assert rows.shape is not None
    heads, size = rows.shape[1], rows.shape[3]
    assert isinstance(heads, int)
    assert isinstance(size, int)
    return heads, size


def _flat(model: ir.Model, node: ir.Node, rows: ir.Value) -> ir.Value:
    """(batch, heads, sequence, head_dim) as (batch, sequence, heads x head_dim)."""
    heads, size = _head_sizes(rows)
    width = heads * size
    turned = made_by(rows, "Transpose")
    if turned is not None and list(turned.attributes["perm"].as_ints()) == _SWAP:
        source = turned.inputs[0]
    else:
        source = _add(model, node, "Transpose", [rows], {"perm": _SWAP}).outputs[0]
    return _add(model, node, "Reshape", [source, add_target(model, 0, 0, width)]).outputs[0]


def _lengths(model: ir.Model, node: ir.Node, mask: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Last row of every batch row, and the number of rows: int32, from the mask's shape."""
    rows = _add(model, node, "Shape", [mask], {"start": 3, "end": 4}).outputs[0]
    batch = _add(model, node, "Shape", [mask], {"start": 0, "end": 1}).outputs[0]
    last = _add(model, node, "Sub", [rows, add_constant(model, "one", [1])]).outputs[0]
    last = _add(model, node, "Expand", [last, batch]).outputs[0]
    to = {"to": int(ir.DataType.INT32)}
    made = [_add(model, node, "Cast", [value], to).outputs[0] for value in (last, rows)]
    return made[0], made[1]


def _add(
    model: ir.Model,
    node: ir.Node,
    op_type: str,
    inputs: list[ir.Value | None],
    attributes: Mapping[str, object] | None = None,
    outputs: int = 1,
) -> ir.Node:
    """A node before the attention, of the same module."""
    domain = "com.microsoft" if op_type == "GroupQueryAttention" else ""
    made = ir.node(op_type, inputs, attributes=dict(attributes or {}), domain=domain, num_outputs=outputs)
    made.metadata_props.update(node.metadata_props)
    model.graph.insert_before(node, made)
    return made
