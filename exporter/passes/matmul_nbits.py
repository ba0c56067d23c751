"""MatMulNBits and GatherBlockQuantized (com.microsoft): products and look-ups in, operators on integer blocks out.

Weights with one scale per row (``--quantize int8-dynamic``) become products of integers instead
(:mod:`exporter.passes.matmul_integer`); experts are unpacked where they are read
(:mod:`exporter.passes.quantized_experts`).

A minimum per block is no fractional zero point, which would cost ONNX Runtime's CPU a factor of fifty: with c the
middle of the codes, y = x (s q - m) = MatMulNBits(x; q - c) + B (s c - m)^T, B the sums of x over blocks (c = 0 would
add up large sums and take them away again). That CPU has no fast product of eight-bit codes with activations as they
are (accuracy level 0). In prefill they are unpacked first, in slices of rows; in decode, where a call has mostly one
token, the product of four bits reads a byte as two of its codes, low and high:
s (q - z) = s (low - 8) + 16 s (high - 8) + s (136 - z), and y = MatMulNBits(x and 16 x by turns) + B (s (136 - z))^T.

Requires: weights are initializers without values; a linear layer is ``MatMul(x, Transpose(weight))``, an embedding
    ``Gather(weight, ids)``.
Ensures: no initializer of a quantised weight is left; both operators read the same bytes of its codes, in two shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import onnx_ir as ir

from kvparity.exporter.contract.blocks import BLOCKS, HALVED_POINT, MINIMA, PARTS, SCALES, ZERO_POINTS
from kvparity.exporter.contract.errors import ExportError
from kvparity.exporter.contract.placement import Placement
from kvparity.exporter.contract.spec import ExportOptions
from kvparity.exporter.passes.conditions import graph_pass
from kvparity.exporter.passes.match import add_constant, add_target, insert_after, insert_before, replace
from kvparity.exporter.passes.matmul_integer import look_up_rows, multiply_integers
from kvparity.exporter.passes.quantized_experts import unpack_experts

__all__ = ["quantize_products"]

_DOMAIN = "com.microsoft"
_ROWS = ".rows"
_UNPACKED = 1 << 24  # elements at a time: 64 MB of a vocabulary's head
_TYPES = {"uint8": ir.DataType.UINT8, "float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16}


@dataclass(frozen=True)
class _Weight:
    """A quantised weight: its placed parts, its size, its code's bits, its block's columns.

    ``leading`` is (experts,) for the weights of experts, whose rows are counted per expert.
    """

    name: str
    parts: Mapping[str, Placement]
    rows: int
    columns: int
    bits: int
    block_size: int
    leading: tuple[int, ...] = ()

    @property
    def blob(self) -> int:
        return self.block_size * self.bits // 8


@graph_pass()
def quantize_products(model: ir.Model, placements: Mapping[str, Placement], options: ExportOptions, few: bool) -> None:
    """Read every quantised weight from its codes.

    Args:
        model: The graph.
        placements: Where the parts of quantised weights lie, and all other weights.
        options: ``accuracy_level`` is MatMulNBits' own; ``quantize`` says whether weights of one scale per row are
            multiplied as integers.
        few: Whether a call has mostly one token.

    Raises:
        ExportError: A quantised weight is used in another way.
    """
    blocked: dict[tuple[ir.Value, int], _Blocked] = {}
    for name in list(model.graph.initializers):
        if name + BLOCKS not in placements:
            continue
        value = model.graph.initializers[name]
        weight = _weight(name, value, placements)
        if weight.leading:
            unpack_experts(model, value, partial(_unpack, model, weight))
        for use in list(value.uses()):
            _rewrite(model, use.node, value, weight, options, blocked, few)
        del model.graph.initializers[name]
        model.opset_imports.setdefault(_DOMAIN, 1)


def _weight(name: str, value: ir.Value, placements: Mapping[str, Placement]) -> _Weight:
    assert value.shape is not None
    *leading, rows, columns = (int(dim) for dim in value.shape.numpy())
    parts = {part: placements[name + part] for part in PARTS if name + part in placements}
    bits = 8 * parts[BLOCKS].shape[1] // columns
    return _Weight(name, parts, rows, columns, bits, columns // parts[SCALES].shape[1], tuple(leading))


def _unpack(model: ir.Model, weight: _Weight, ids: ir.Value) -> ir.Node:
    """Experts (n, rows, columns) from their numbers (n,)."""
    shape = (*weight.leading, weight.rows, -1)
    inputs = [
        _part(model, weight, part, weight.name + part, (*shape[:-1], weight.parts[part].shape[1]))
        for part in weight.parts
    ]
    inputs.insert(1, ids)
    attributes = {"bits": weight.bits, "block_size": weight.block_size, "gather_axis": 0, "quantize_axis": 2}
    return ir.node("GatherBlockQuantized", inputs, attributes=attributes, domain=_DOMAIN)


def _rewrite(
    model: ir.Model,
    node: ir.Node,
    value: ir.Value,
    weight: _Weight,
    options: ExportOptions,
    blocked: dict[tuple[ir.Value, int], _Blocked],
    few: bool,
) -> None:
    integers = options.quantize == "int8-dynamic"
    if node.op_type == "Gather" and node.inputs[0] is value and node.attributes.get_int("axis", 0) == 0:
        if integers:
            look_up_rows(model, node, *_by_rows(model, weight, (weight.rows, 1)))
        else:
            assert node.inputs[1] is not None
            assert node.outputs[0].shape is not None
            replace(model, node, *_rows_of(model, node, weight, node.inputs[1], node.outputs[0].shape))
        return
    products = [use.node for use in node.outputs[0].uses()] if node.op_type == "Transpose" else []
    for product in products:
        if product.op_type != "MatMul" or product.inputs[1] is not node.outputs[0]:
            products = []
    if not products:
        kind = weight.name.split(".")[-2]
        raise ExportError(f"{weight.name} is used by {node.op_type}, which has no quantised form; --keep {kind}")
    for product in products:
        if integers:
            multiply_integers(model, product, *_by_rows(model, weight, (weight.rows,)))
        else:
            source = product.inputs[0]
            assert source is not None
            key = source, weight.block_size
            if key not in blocked:
                blocked[key] = _Blocked(model, source, len(product.outputs[0].shape or ()), weight)
            _multiply(model, product, weight, options, blocked[key], few)
    model.graph.remove(node, safe=True)


class _Blocked:
    """What products make of one activation (..., columns), once: elements for bytes read as two codes, block sums."""

    def __init__(self, model: ir.Model, source: ir.Value, rank: int, weight: _Weight) -> None:
        self._model, self._source, self._leading = model, source, [0] * (rank - 1)
        self._columns, self._size = weight.columns, weight.block_size

    @cached_property
    def halves(self) -> ir.Value:
        """(..., 2 x columns): every element, and 16 times it."""
        axis = add_constant(self._model, "blocks.last", [-1])
        factors = add_constant(self._model, "blocks.halves", [1, 16], np.float32)
        (pairs,) = insert_after(self._model, self._source, "Unsqueeze", axis)
        (scaled,) = insert_after(self._model, pairs, "Mul", factors)
        target = add_target(self._model, *self._leading, 2 * self._columns)
        return insert_after(self._model, scaled, "Reshape", target)[0]

    @cached_property
    def sums(self) -> ir.Value:
        """(..., blocks)."""
        target = add_target(self._model, *self._leading, self._columns // self._size, self._size)
        (parted,) = insert_after(self._model, self._source, "Reshape", target)
        axis = add_constant(self._model, "blocks.last", [-1])
        return insert_after(self._model, parted, "ReduceSum", axis, keepdims=0)[0]


def _multiply(
    model: ir.Model, node: ir.Node, weight: _Weight, options: ExportOptions, blocked: _Blocked, few: bool
) -> None:
    level = options.accuracy_level
    halved = weight.bits == 8 and level == 0 and (options.provider, options.dtype) == ("cpu", "float32")
    if halved and not few:
        _unpacked(model, node, weight)
        return
    parts = 2 if halved else 1
    blocks = weight.columns // weight.block_size
    codes = _part(model, weight, BLOCKS, weight.name + BLOCKS, (weight.rows, blocks, weight.blob))
    attributes = {
        "K": parts * weight.columns,
        "N": weight.rows,
        "bits": weight.bits // parts,
        "block_size": parts * weight.block_size,
        "accuracy_level": level,
    }
    centered = halved or (MINIMA in weight.parts and level == 0)
    factors = [_factor(model, weight, SCALES)] if centered else _factors(model, weight)
    inputs = [blocked.halves if halved else node.inputs[0], codes, *factors]
    middle = 0 if not centered else HALVED_POINT if halved else 1 << (weight.bits - 1)
    shift = _shift(model, node, weight, middle)
    if shift is None:
        replace(model, node, "MatMulNBits", inputs, attributes, _DOMAIN)
        return
    product = insert_before(model, node, "MatMulNBits", inputs, _DOMAIN, **attributes)
    product.type, product.shape = node.outputs[0].type, node.outputs[0].shape
    turned = insert_before(model, node, "Transpose", [shift], perm=[1, 0])
    replace(model, node, "Add", [product, insert_before(model, node, "MatMul", [blocked.sums, turned])])


def _shift(model: ir.Model, node: ir.Node, weight: _Weight, middle: int) -> ir.Value | None:
    """(rows, blocks): what a block's elements are besides (code - middle) x scale; None where that is nothing.

    Args:
        model: The graph.
        node: The product.
        weight: Its weight. With minima all its zero points are 0.
        middle: The code that the product takes for zero; 0 where it reads the zero points.
    """
    shift: ir.Value | None = None
    if middle:
        offset = add_constant(model, f"blocks.middle.{middle}", middle, np.float32)
        if MINIMA not in weight.parts:
            if ZERO_POINTS in weight.parts:
                stored = _factor(model, weight, ZERO_POINTS)
                points = insert_before(model, node, "Cast", [stored], to=int(ir.DataType.FLOAT))
            else:
                points = add_constant(model, "blocks.middle.128", 128, np.float32)
            offset = insert_before(model, node, "Sub", [offset, points])
        shift = insert_before(model, node, "Mul", [_factor(model, weight, SCALES), offset])
    if MINIMA in weight.parts:
        minima = _factor(model, weight, MINIMA)
        one = insert_before(model, node, "Neg", [minima])
        shift = one if shift is None else insert_before(model, node, "Add", [shift, one])
    return shift


def _unpacked(model: ir.Model, node: ir.Node, weight: _Weight) -> None:
    """A product with rows unpacked before it, so many at a time."""
    products, step = [], max(1, _UNPACKED // weight.columns)
    for start in range(0, weight.rows, step):
        stop = min(start + step, weight.rows)
        ends = [add_constant(model, f"blocks.row.{row}", row) for row in (start, stop)]
        ids = insert_before(model, node, "Range", [*ends, add_constant(model, "blocks.row.1", 1)])
        made = _rows_of(model, node, weight, ids, ir.Shape([stop - start, weight.columns]))
        op_type, inputs, attributes, domain = made
        rows = insert_before(model, node, op_type, inputs, domain, **attributes)
        turned = insert_before(model, node, "Transpose", [rows], perm=[1, 0])
        products.append((node.inputs[0], turned))
    if len(products) == 1:
        replace(model, node, "MatMul", products[0])
    else:
        replace(model, node, "Concat", [insert_before(model, node, "MatMul", pair) for pair in products], {"axis": -1})


def _rows_of(
    model: ir.Model, node: ir.Node, weight: _Weight, ids: ir.Value, shape: ir.Shape
) -> tuple[str, list[ir.Value | None], dict[str, int], str]:
    """Operator, inputs, attributes and domain of rows (..., columns) by their numbers (...), as part of a node."""
    codes = _part(model, weight, BLOCKS, weight.name + _ROWS, (weight.rows, weight.columns * weight.bits // 8))
    attributes = {"bits": weight.bits, "block_size": weight.block_size, "gather_axis": 0, "quantize_axis": 1}
    inputs: list[ir.Value | None] = [codes, ids, *_factors(model, weight)]
    if MINIMA not in weight.parts:
        return "GatherBlockQuantized", inputs, attributes, _DOMAIN
    leading = [0] * (len(shape) - 1)
    rows = insert_before(model, node, "GatherBlockQuantized", inputs, _DOMAIN, **attributes)
    rows.type, rows.shape = node.outputs[0].type, shape
    parted = add_target(model, *leading, weight.columns // weight.block_size, weight.block_size)
    minima = insert_before(model, node, "Gather", [_factor(model, weight, MINIMA), ids], axis=0)
    minima = insert_before(model, node, "Unsqueeze", [minima, add_constant(model, "blocks.last", [-1])])
    rows = insert_before(model, node, "Sub", [insert_before(model, node, "Reshape", [rows, parted]), minima])
    return "Reshape", [rows, add_target(model, *leading, weight.columns)], {}, ""


def _by_rows(model: ir.Model, weight: _Weight, scales: tuple[int, ...]) -> tuple[ir.Value, ir.Value]:
    """Codes (rows, columns) and scales, in the shape asked for, of a weight with one scale per row."""
    codes = _part(model, weight, BLOCKS, weight.name + BLOCKS, (weight.rows, weight.columns))
    suffix = SCALES if len(scales) == 1 else f"{SCALES}{_ROWS}"
    return codes, _part(model, weight, SCALES, weight.name + suffix, scales)


def _factors(model: ir.Model, weight: _Weight) -> list[ir.Value]:
    """Scales, and zero points where there are any."""
    return [_factor(model, weight, part) for part in (SCALES, ZERO_POINTS) if part in weight.parts]


def _factor(model: ir.Model, weight: _Weight, part: str) -> ir.Value:
    return _part(model, weight, part, weight.name + part, weight.parts[part].shape)


def _part(model: ir.Model, weight: _Weight, part: str, name: str, shape: tuple[int, ...]) -> ir.Value:
    """An initializer of some bytes of the weights file; made once."""
    if name not in model.graph.initializers:
        place = weight.parts[part]
        kind = _TYPES[place.dtype]
        tensor = ir.ExternalTensor(place.location, place.offset, place.length, kind, shape=ir.Shape(shape), name=name)
        value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(shape), type=ir.TensorType(kind))
        model.graph.register_initializer(value)
    return model.graph.initializers[name]
