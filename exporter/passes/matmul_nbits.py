"""MatMulNBits and GatherBlockQuantized (com.microsoft): products and look-ups in, operators on integer blocks out.

Weights with one scale per row (``--quantize int8-dynamic``) become products of integers instead
(:mod:`exporter.passes.matmul_integer`); experts are unpacked where they are read
(:mod:`exporter.passes.quantized_experts`).

A minimum per block is no fractional zero point, which would cost ONNX Runtime's CPU a factor of fifty:
y = x (s q - m) = MatMulNBits(x) - B m^T, B the sums of x over blocks. That CPU has no fast product of eight-bit codes
with activations as they are (accuracy level 0), but one of four bits: a byte is two of these, low and high, so
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

from kvparity.exporter.contract.blocks import BLOCKS, MINIMA, PARTS, SCALES, ZERO_POINTS
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
def quantize_products(model: ir.Model, placements: Mapping[str, Placement], options: ExportOptions) -> None:
    """Read every quantised weight from its codes.

    Args:
        model: The graph.
        placements: Where the parts of quantised weights lie, and all other weights.
        options: ``accuracy_level`` is MatMulNBits' own; ``quantize`` says whether weights of one scale per row are
            multiplied as integers.

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
            _rewrite(model, use.node, value, weight, options, blocked)
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
) -> None:
    integers = options.quantize == "int8-dynamic"
    if node.op_type == "Gather" and node.inputs[0] is value and node.attributes.get_int("axis", 0) == 0:
        if integers:
            look_up_rows(model, node, *_by_rows(model, weight, (weight.rows, 1)))
        else:
            _look_up(model, node, weight)
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
            _multiply(model, product, weight, options, blocked[key])
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


def _multiply(model: ir.Model, node: ir.Node, weight: _Weight, options: ExportOptions, blocked: _Blocked) -> None:
    level = options.accuracy_level
    halved = weight.bits == 8 and level == 0 and (options.provider, options.dtype) == ("cpu", "float32")
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
    inputs = [node.inputs[0], codes, *_factors(model, weight)]
    if halved:
        inputs = [blocked.halves, codes, _factor(model, weight, SCALES)]
    shift = _shift(model, node, weight, halved=halved)
    if shift is None:
        replace(model, node, "MatMulNBits", inputs, attributes, _DOMAIN)
        return
    product = insert_before(model, node, "MatMulNBits", inputs, _DOMAIN, **attributes)
    product.type, product.shape = node.outputs[0].type, node.outputs[0].shape
    turned = insert_before(model, node, "Transpose", [shift], perm=[1, 0])
    replace(model, node, "Add", [product, insert_before(model, node, "MatMul", [blocked.sums, turned])])


def _shift(model: ir.Model, node: ir.Node, weight: _Weight, *, halved: bool) -> ir.Value | None:
    """(rows, blocks): what every element of a block is besides its codes' product; None where that is nothing."""
    shift: ir.Value | None = None
    if halved:
        offset = add_constant(model, "blocks.center", 8, np.float32)
        if ZERO_POINTS in weight.parts:
            wide = insert_before(model, node, "Cast", [_factor(model, weight, ZERO_POINTS)], to=int(ir.DataType.FLOAT))
            both = add_constant(model, "blocks.centers", 8 + 128, np.float32)
            offset = insert_before(model, node, "Sub", [both, wide])
        shift = insert_before(model, node, "Mul", [_factor(model, weight, SCALES), offset])
    if MINIMA in weight.parts:
        minima = _factor(model, weight, MINIMA)
        one = insert_before(model, node, "Neg", [minima])
        shift = one if shift is None else insert_before(model, node, "Add", [shift, one])
    return shift


def _look_up(model: ir.Model, node: ir.Node, weight: _Weight) -> None:
    name = weight.name + _ROWS
    codes = _part(model, weight, BLOCKS, name, (weight.rows, weight.columns * weight.bits // 8))
    attributes = {"bits": weight.bits, "block_size": weight.block_size, "gather_axis": 0, "quantize_axis": 1}
    inputs = [codes, node.inputs[1], *_factors(model, weight)]
    if MINIMA not in weight.parts:
        replace(model, node, "GatherBlockQuantized", inputs, attributes, _DOMAIN)
        return
    leading = [0] * (len(node.outputs[0].shape or ()) - 1)
    rows = insert_before(model, node, "GatherBlockQuantized", inputs, _DOMAIN, **attributes)
    rows.type, rows.shape = node.outputs[0].type, node.outputs[0].shape
    parted = add_target(model, *leading, weight.columns // weight.block_size, weight.block_size)
    minima = insert_before(model, node, "Gather", [_factor(model, weight, MINIMA), node.inputs[1]], axis=0)
    minima = insert_before(model, node, "Unsqueeze", [minima, add_constant(model, "blocks.last", [-1])])
    rows = insert_before(model, node, "Sub", [insert_before(model, node, "Reshape", [rows, parted]), minima])
    replace(model, node, "Reshape", [rows, add_target(model, *leading, weight.columns)])


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
