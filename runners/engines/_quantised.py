"""Products and look-ups of quantised weights, spelled with what the weights stand for: for the exact runner only.

Codes, scales and zero points are initializers, or computed from initializers alone by operators that keep or convert
numbers: ONNX Runtime GenAI's tied embeddings are the head's codes through a Reshape.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common as common

from kvparity.exporter.contract.blocks import HALVED_POINT, Blocks, dequantize, halved_input
from kvparity.exporter.contract.errors import EngineUnavailableError

__all__ = ["constant_array", "multiply_out", "spelling"]

_KEEPS = {"Cast", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}  # none makes more


@contextmanager
def spelling(node: ir.Node) -> Iterator[None]:
    """Whatever a form of an operator that nobody foresaw raises in this block is one line that names the node.

    Raises:
        EngineUnavailableError: The form is not known.
    """
    try:
        yield
    except EngineUnavailableError:
        raise
    except Exception as error:  # a foreign graph may lack anything: attributes, inputs, readers
        raise _refused(node, "as it is written there") from error


def _refused(node: ir.Node, what: str) -> EngineUnavailableError:
    return EngineUnavailableError(f"exact: node {node.name}: {node.op_type} {what} has no float64 evaluation")


def constant_array(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """What a value holds, if it is computed from initializers alone by operators that keep or convert numbers."""
    chain: list[ir.Node] = []
    while value is not None and value.const_value is None:
        node = value.producer()
        tensor = node.attributes.get("value") if node is not None and node.op_type == "Constant" else None
        if tensor is not None:
            array = tensor.as_tensor().numpy()
            break
        if node is None or node.op_type not in _KEEPS or node.domain not in ("", "ai.onnx") or node in chain:
            return None
        chain.append(node)
        value = node.inputs[0]
    else:
        if value is None or value.const_value is None:
            return None
        array = value.const_value.numpy()
    for node in reversed(chain):
        array = _evaluated(node, array)
    return array


def _evaluated(node: ir.Node, array: npt.NDArray[Any]) -> Any:
    from onnx.reference import ReferenceEvaluator

    feeds = {str(node.inputs[0].name): array} if node.inputs[0] is not None else {}
    for value in node.inputs[1:]:
        if value is not None:
            other = constant_array(value)
            if other is None:
                raise EngineUnavailableError(f"exact: node {node.name}: {node.op_type} by {value.name}, which varies")
            feeds[str(value.name)] = other
    return ReferenceEvaluator(ir.to_proto(node)).run(None, feeds)[0]


def multiply_out(model: ir.Model) -> None:
    """Replace MatMulNBits, GatherBlockQuantized and MatMulInteger, in place, exactly.

    Raises:
        EngineUnavailableError: A form of them that is not spelled; names the node.
    """
    for node in list(model.graph):
        spell = _SPELLED.get(node.op_type)
        if spell is None:
            continue
        with spelling(node):
            node, plain = spell(model, node)
        new, old = plain[-1].outputs[0], node.outputs[0]
        new.name, new.type, new.shape = old.name, old.type, old.shape
        model.graph.insert_before(node, plain)
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
    common.RemoveUnusedNodesPass()(model)
    for name in [name for name, value in model.graph.initializers.items() if not value.uses()]:
        del model.graph.initializers[name]  # codes: a model of 2 GB more can't be handed over
    for value in model.graph.initializers.values():  # codes that rows are looked up in
        if isinstance(value.const_value, ir.ExternalTensor) and value.const_value.dtype != ir.DataType.DOUBLE:
            value.const_value = ir.tensor(np.array(value.const_value.numpy()), name=value.name)


def _product(model: ir.Model, node: ir.Node) -> tuple[ir.Node, list[ir.Node]]:
    """X times the transpose of (N, K); with a bias where there is one."""
    source, rows, columns = node.inputs[0], _int(node, "N"), _int(node, "K")
    whole = halved_input(node)
    size = _int(node, "block_size")
    _, codes, scales, points, order, bias = [*node.inputs, *[None] * 5][:6]
    if order is not None:
        raise _refused(node, "with g_idx")
    if whole is not None:
        source, columns, size = whole, columns // 2, size // 2
    parts = codes, scales, points
    table = _table(model, node, parts, (rows,), columns, size, halved=whole is not None)
    turned = ir.node("Transpose", [table], attributes={"perm": [1, 0]}, name=f"{node.name}/transpose")
    plain = [turned, ir.node("MatMul", [source, turned.outputs[0]], name=node.name)]
    if bias is not None:
        plain[-1].outputs[0].name = f"{node.name}/product"
        plain.append(ir.node("Add", [plain[-1].outputs[0], bias], name=f"{node.name}/bias"))
    return node, plain


def _look_up(model: ir.Model, node: ir.Node) -> tuple[ir.Node, list[ir.Node]]:
    """Rows of a table in blocks along its last axis."""
    codes, ids, scales, *points = node.inputs
    factors = constant_array(scales)
    if factors is None:
        raise _refused(node, "whose scales are not constant")
    size, axis = _int(node, "block_size", 128), _int(node, "quantize_axis", 1)
    if _int(node, "gather_axis", 0) or axis not in (-1, factors.ndim - 1):
        raise _refused(node, f"along axes {_int(node, 'gather_axis', 0)} and {axis} of {factors.ndim}")
    stored = constant_array(codes)
    if stored is None:
        raise _refused(node, "whose codes are not constant")
    packed = 8 // _int(node, "bits", 4) if stored.dtype == np.uint8 else 1
    columns = stored.size * packed // int(np.prod(factors.shape[:-1]))
    table = _table(model, node, [codes, scales, *points], factors.shape[:-1], columns, size)
    return node, [ir.node("Gather", [table, ids], attributes={"axis": 0}, name=node.name)]


def _integers(model: ir.Model, node: ir.Node) -> tuple[ir.Node, list[ir.Node]]:
    """The last node of a product of integers, and the product of what the integers stand for, nothing rounded."""
    (cast,) = node.outputs[0].uses()
    (last,) = cast.node.outputs[0].uses()
    factors = next(value for value in last.node.inputs if value is not cast.node.outputs[0])
    source, codes = _source(node.inputs[0], 0), _source(node.inputs[1], 0)
    rows, columns = codes.shape.numpy()
    table = _table(model, node, [codes, _source(factors, 1)], (int(rows),), int(columns), int(columns))
    back = ir.node("Transpose", [table], attributes={"perm": [1, 0]}, name=f"{node.name}/transpose")
    return last.node, [back, ir.node("MatMul", [source, back.outputs[0]], name=node.name)]


def _source(value: ir.Value | None, place: int) -> Any:
    """An input of the node that makes a value."""
    node = None if value is None else value.producer()
    assert node is not None
    return node.inputs[place]


def _table(
    model: ir.Model,
    node: ir.Node,
    parts: Sequence[ir.Value | None],
    leading: Sequence[int],
    columns: int,
    size: int,
    *,
    halved: bool = False,
) -> ir.Value:
    """The float64 weight (..., columns); operators that have scales and zero points in common share it.

    Args:
        model: The graph.
        node: What reads it.
        parts: Codes, scales and zero points.
        leading: Axes of the weight before its columns.
        columns: Of the weight.
        size: Columns of a block; the last one may be cut.
        halved: Whether the codes are bytes that the node reads as two of four bits.
    """
    bits = _bits(node, halved=halved)
    kept = [str(part.name) for part in parts[1:] if part is not None]
    name = "/".join([*kept, f"{'halves' if halved else bits}x{size}", *map(str, leading), str(columns)])
    if name in model.graph.initializers:
        return model.graph.initializers[name]
    rows, count = int(np.prod(leading)), -(-columns // size)
    arrays = [constant_array(part) for part in parts]
    for part, array in zip(parts, arrays, strict=True):
        if part is not None and array is None:
            raise _refused(node, f"whose {part.name} is not constant")
    codes, factors, points = [*arrays, None][:3]
    assert codes is not None
    assert factors is not None
    factors = factors.reshape(rows, count)
    if halved:
        points = np.full((rows, count), HALVED_POINT, np.uint8)
    if codes.dtype.itemsize != 1 or (points is not None and points.dtype != codes.dtype):
        raise _refused(node, f"of {codes.dtype} codes" + ("" if points is None else f", {points.dtype} zero points"))
    if codes.dtype == np.uint8:
        points = None if points is None else points.reshape(rows, -1)
        values = _unpacked(Blocks(codes.reshape(rows, -1), factors, points), columns, size, bits)
    else:  # int4, uint4, int8: one number each, zero points 0 by default
        zero = 0.0 if points is None else points.astype(np.float64).reshape(rows, count).repeat(size, 1)[:, :columns]
        values = (codes.astype(np.float64).reshape(rows, columns) - zero) * factors.repeat(size, 1)[:, :columns]
    tensor = ir.tensor(values.reshape(*leading, columns), name=name)
    shape, kind = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
    value = ir.Value(name=name, const_value=tensor, shape=shape, type=kind)
    model.graph.register_initializer(value)
    return value


def _bits(node: ir.Node, *, halved: bool) -> int:
    """Bits of a code that is stored in bytes.

    Raises:
        EngineUnavailableError: Neither four nor eight.
    """
    bits = 8 if halved or node.op_type == "MatMulInteger" else _int(node, "bits", 4)
    if bits not in (4, 8):
        raise _refused(node, f"of {bits} bits")
    return bits


def _unpacked(blocks: Blocks, columns: int, size: int, bits: int) -> npt.NDArray[np.float64]:
    """The weight; rows of codes may end within a block or be padded to whole ones."""
    whole = -(-columns // size) * size
    missing = whole * bits // 8 - blocks.codes.shape[1]
    codes = np.pad(blocks.codes, ((0, 0), (0, missing))) if missing > 0 else blocks.codes
    return dequantize(Blocks(codes, blocks.scales, blocks.zero_points), whole)[:, :columns]


def _int(node: ir.Node, name: str, default: int | None = None) -> int:
    return node.attributes[name].as_int() if name in node.attributes or default is None else default


_SPELLED = {"MatMulNBits": _product, "GatherBlockQuantized": _look_up, "MatMulInteger": _integers}
