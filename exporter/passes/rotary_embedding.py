"""RotaryEmbedding (opset 23): ``x cos + rotate_half(x) sin`` in, one operator on half tables out.

Requires: opset 23 is wanted; shapes of traced values.
Ensures: no such sum is left whose tables are the cos and sin of one half laid twice.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
import onnx_ir.passes.common as common

from kvparity.exporter.passes.conditions import graph_pass, shaped
from kvparity.exporter.passes.match import add_target, replace

__all__ = ["fuse_rotary"]

_SWAP = [0, 2, 1, 3]


def _ranked(model: ir.Model) -> Iterator[str]:
    """As the operator asks: (batch, heads, sequence, head_dim), or rank 3 and ``num_heads``."""
    for node in model.graph:
        shape = node.inputs[0].shape if node.op_type == "RotaryEmbedding" and node.inputs[0] is not None else None
        if shape is not None and len(shape) != (3 if "num_heads" in node.attributes else 4):
            yield f"{node.outputs[0].name} rotates a value of rank {len(shape)}"


@graph_pass(requires=[shaped], ensures=[_ranked])
def fuse_rotary(model: ir.Model, flat: bool = False) -> None:
    """Fuse every rotation of halves.

    Args:
        model: A graph.
        flat: Feed (batch, sequence, heads x head_dim) where heads come last: two Reshapes, which copy nothing, instead
            of two Transposes.
    """
    halves: dict[ir.Value, ir.Value | None] = {}
    for node in list(model.graph):
        if node.op_type == "Add":
            _fuse(model, node, halves, flat=flat)
    common.RemoveUnusedNodesPass()(model)


def _fuse(model: ir.Model, add: ir.Node, halves: dict[ir.Value, ir.Value | None], *, flat: bool) -> None:
    found = _match(add)
    if found is None:
        return
    source, tables, axis = found
    for wide in tables:
        if wide not in halves:
            halves[wide] = _half(model, wide)
    cos, sin = (halves[wide] for wide in tables)
    if cos is None or sin is None:
        return
    swapped = axis == 2
    if swapped and flat and isinstance(source.shape[2] if source.shape is not None else None, int):
        _rotate_flat(model, add, source, (cos, sin))
        return
    given = ir.node("Transpose", [source], attributes={"perm": _SWAP}) if swapped else None
    rotary = ir.node("RotaryEmbedding", [given.outputs[0] if given is not None else source, cos, sin])
    out, old = rotary.outputs[0], add.outputs[0]
    out.type = old.type
    model.graph.insert_before(add, [given, rotary] if given is not None else [rotary])
    if not swapped:
        out.name, out.shape = old.name, old.shape
        out.metadata_props.update(old.metadata_props)
        old.replace_all_uses_with(out, replace_graph_outputs=True)
        return
    _swap_back(model, add, out)


def _rotate_flat(model: ir.Model, add: ir.Node, source: ir.Value, tables: tuple[ir.Value, ir.Value]) -> None:
    """Join heads and their columns, rotate, part them again."""
    assert source.shape is not None
    batch, sequence, heads, size = source.shape
    assert isinstance(heads, int)
    assert isinstance(size, int)
    joined = ir.node("Reshape", [source, add_target(model, 0, 0, heads * size)])
    rotary = ir.node("RotaryEmbedding", [joined.outputs[0], *tables], attributes={"num_heads": heads})
    for node in (joined, rotary):
        node.outputs[0].type, node.outputs[0].shape = source.type, ir.Shape([batch, sequence, heads * size])
        node.metadata_props.update(add.metadata_props)
    model.graph.insert_before(add, [joined, rotary])
    parted = add_target(model, 0, 0, heads, size)
    replace(model, add, "Reshape", [rotary.outputs[0], parted])


def _swap_back(model: ir.Model, add: ir.Node, rotated: ir.Value) -> None:
    """Give readers of the sum what they had: those that swap the axes themselves read the rotated value."""
    old = add.outputs[0]
    if old.shape is not None:
        rotated.shape = ir.Shape([old.shape[axis] for axis in _SWAP])
    for user, _ in list(old.uses()):
        if user.op_type == "Transpose" and list(user.attributes["perm"].as_ints()) == _SWAP:
            user.outputs[0].replace_all_uses_with(rotated, replace_graph_outputs=True)
            rotated.name = user.outputs[0].name
            rotated.metadata_props.update(user.outputs[0].metadata_props)
            model.graph.remove(user, safe=True)
    if old.uses():
        back = ir.node("Transpose", [rotated], attributes={"perm": _SWAP})
        back.outputs[0].name, back.outputs[0].type, back.outputs[0].shape = old.name, old.type, old.shape
        model.graph.insert_before(add, back)
        old.replace_all_uses_with(back.outputs[0], replace_graph_outputs=True)


def _match(add: ir.Node) -> tuple[ir.Value, tuple[ir.Value, ir.Value], int] | None:
    """(x, (cos, sin), axis of the heads) of a rotary sum, or None."""
    products = [_producer(value, "Mul") for value in add.inputs]
    for one, other in (products, products[::-1]):
        if one is None or other is None:
            return None
        for source, cos in (one.inputs, one.inputs[::-1]):
            for turned, sin in (other.inputs, other.inputs[::-1]):
                if source is None or not _is_rotated(turned, source):
                    continue
                wide = [_producer(value, "Unsqueeze") for value in (cos, sin)]
                axes = [_constant(node.inputs[1]) for node in wide if node is not None]
                if axes in ([[1], [1]], [[2], [2]]):
                    tables = tuple(node.inputs[0] for node in wide if node is not None)
                    return source, tables, axes[0][0]  # type: ignore[return-value,index]
    return None


def _is_rotated(value: ir.Value | None, source: ir.Value) -> bool:
    """Whether a value is Concat(-source[half:], source[:half]) along the last axis."""
    concat = _producer(value, "Concat")
    if concat is None or len(concat.inputs) != 2 or source.shape is None or len(source.shape) != 4:
        return False
    size = source.shape[3]
    negated = _producer(concat.inputs[0], "Neg")
    if not isinstance(size, int) or negated is None or concat.attributes["axis"].as_int() not in (-1, 3):
        return False
    second, first = _span(negated.inputs[0], source), _span(concat.inputs[1], source)
    return first == (0, size // 2) and second is not None and second[0] == size // 2 and second[1] >= size


def _span(value: ir.Value | None, source: ir.Value) -> tuple[int, int] | None:
    """(start, end) where a value is a slice of the source's last axis."""
    node = _producer(value, "Slice")
    if node is None or node.inputs[0] is not source or _constant(node.inputs[3]) not in ([3], [-1]):
        return None
    start, end = _constant(node.inputs[1]), _constant(node.inputs[2])
    return (start[0], end[0]) if start and end else None


def _half(model: ir.Model, wide: ir.Value) -> ir.Value | None:
    """The table over one half of the columns, where the other half repeats it."""
    chain: list[ir.Node] = []
    value: ir.Value | None = wide
    while True:
        node = value.producer() if value is not None else None
        if node is None:
            return None
        if node.op_type == "Concat" and chain and len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]:
            value = node.inputs[0]
            break
        constant = next((v for v in node.inputs[1:] if v is not None and v.const_value is not None), None)
        if node.op_type not in ("Cos", "Sin", "Cast") and not (
            node.op_type == "Mul" and constant is not None and constant.const_value.size == 1  # type: ignore[union-attr]
        ):
            return None
        chain.append(node)
        value = node.inputs[0]
    anchor = chain[0]
    for node in reversed(chain):
        copy = ir.node(node.op_type, [value, *node.inputs[1:]], attributes=dict(node.attributes))
        copy.outputs[0].type = node.outputs[0].type
        copy.metadata_props.update(node.metadata_props)
        model.graph.insert_before(anchor, copy)
        value = copy.outputs[0]
    return value


def _producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type else None


def _constant(value: ir.Value | None) -> list[int] | None:
    tensor = value.const_value if value is not None else None
    return None if tensor is None else tensor.numpy().ravel().tolist()
