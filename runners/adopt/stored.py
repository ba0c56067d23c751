"""Weights as a graph stores them: initializers, and what quantised ones stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvparity.exporter.contract.blocks import HALVED_POINT, Blocks, dequantize, halved_input
from kvparity.exporter.contract.graph_file import load_graph_file

__all__ = ["Stored", "scalar_constants", "stored_weights"]

Array = npt.NDArray[Any]
_LEAST = 2  # elements of a weight; single numbers are constants


@dataclass(frozen=True)
class Stored:
    """One weight of a graph.

    Attributes:
        name: Of its initializer.
        values: Reads it, in float32 or wider.
        shape: Of the values.
        coding: ``float32``, ``float16``, ``int4``, …
        node: Index of the first node that reads it, which tells the order of layers.
        step: Quantised: the largest distance between two neighbouring values; 0 elsewhere.
    """

    name: str
    values: Callable[[], Array]
    shape: tuple[int, ...]
    coding: str
    node: int
    step: float = 0.0


def stored_weights(path: Path) -> Iterator[Stored]:
    """Every floating-point weight of a graph, quantised ones as what they stand for.

    Args:
        path: The ``.onnx`` file; external data is mapped, not read.
    """
    model = load_graph_file(path)
    first: dict[str, int] = {}
    parts: set[str] = set()
    for index, node in enumerate(model.graph):
        for value in node.inputs:
            if value is not None and value.is_initializer():
                first.setdefault(str(value.name), index)
        found = _quantised(node, index)
        if found is not None:
            parts |= {str(value.name) for value in [*node.inputs[1:], *_leaves(_shift(node))] if value is not None}
            parts |= {str(value.name) for value in node.inputs[:1] if value is not None and value.is_initializer()}
            yield found
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or name in parts or tensor.size < _LEAST or not tensor.dtype.is_floating_point():
            continue
        shape = tuple(int(size) for size in tensor.shape.numpy())
        kind = tensor.dtype.numpy().name
        yield Stored(name, partial(_floats, tensor), shape, kind, first.get(name, -1))


def scalar_constants(path: Path) -> dict[str, float]:
    """Single floating-point numbers that a graph holds, by the name of their value."""
    model = load_graph_file(path)
    found: dict[str, float] = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.size == 1 and tensor.dtype.is_floating_point():
            found[name] = float(np.asarray(tensor.numpy(), np.float64).reshape(()))
    for node in model.graph:
        tensor = (
            node.attributes["value"].as_tensor() if node.op_type == "Constant" and "value" in node.attributes else None
        )
        if tensor is not None and tensor.size == 1 and tensor.dtype.is_floating_point():
            found[str(node.outputs[0].name)] = float(np.asarray(tensor.numpy(), np.float64).reshape(()))
    return found


def _floats(tensor: Any) -> Array:
    array = np.asarray(tensor.numpy())
    return array if array.dtype.itemsize > 2 else array.astype(np.float32)


def _quantised(node: Any, index: int) -> Stored | None:
    """What a quantised product, look-up or DequantizeLinear reads; None for any other node."""
    constant = [value.const_value if value is not None else None for value in node.inputs]
    if node.op_type == "MatMulNBits" and node.domain == "com.microsoft":
        return _nbits(node, constant, index)
    if node.op_type == "GatherBlockQuantized" and node.domain == "com.microsoft":
        return _gather(node, constant, index)
    if node.op_type == "DequantizeLinear" and constant[0] is not None and constant[1] is not None:
        return _linear(node, constant, index)
    return None


_ARITHMETIC: dict[str, Callable[..., Array]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Neg": np.negative,
    "Cast": lambda array: array.astype(np.float32),
}


def _shift(node: Any) -> Any:
    """(rows, blocks) that our own bundles add to a product with blocks, or subtract from their rows; None without.

    A product: ``Add(MatMulNBits(x), MatMul(sums of x, Transpose(shift)))``. Rows: ``Sub(rows, Gather(shift, ids))``.
    """
    for use in node.outputs[0].uses():
        rows = [inner.node for inner in use.node.outputs[0].uses()] if use.node.op_type == "Reshape" else []
        if rows and rows[0].op_type == "Sub":
            return _back(rows[0].inputs[1], "Unsqueeze", "Gather")
        for other in use.node.inputs if use.node.op_type == "Add" else ():
            product = other.producer() if other is not node.outputs[0] and other is not None else None
            source = halved_input(node) or node.inputs[0]
            if product is not None and _back(product.inputs[0], "ReduceSum", "Reshape") is source:
                return _back(product.inputs[1], "Transpose")
    return None


def _back(value: Any, *op_types: str) -> Any:
    """The first input of the first of some operators in a row, the last of which makes a value; None for others."""
    for op_type in op_types:
        made = value.producer() if value is not None else None
        if made is None or made.op_type != op_type:
            return None
        value = made.inputs[0]
    return value


def _leaves(value: Any) -> Iterator[Any]:
    """The initializers that a value is computed from."""
    if value is not None and value.is_initializer():
        yield value
    elif value is not None:
        for source in value.producer().inputs:
            yield from _leaves(source)


def _computed(value: Any) -> Array:
    """The value of a sum or product of constants."""
    if value.is_initializer():
        return np.asarray(value.const_value.numpy())
    made = value.producer()
    return _ARITHMETIC[made.op_type](*(_computed(source) for source in made.inputs))


def _attribute(node: Any, name: str, default: int) -> int:
    return int(node.attributes[name].as_int()) if name in node.attributes else default


def _nbits(node: Any, constant: list[Any], index: int) -> Stored | None:
    """(N, blocks, bytes) codes with scales (N, blocks), as com.microsoft's MatMulNBits lays them out."""
    if constant[1] is None or constant[2] is None:
        return None
    rows, columns = _attribute(node, "N", 0), _attribute(node, "K", 0)
    bits, size = _attribute(node, "bits", 4), _attribute(node, "block_size", 32)
    whole = halved_input(node) is not None
    if whole:
        columns, bits, size = columns // 2, 8, size // 2
    points = constant[3] if len(constant) > 3 else None
    shift = _shift(node)
    step = float(np.abs(np.asarray(constant[2].numpy(), np.float32)).max(initial=0))

    def values() -> Array:
        count = -(-columns // size)
        zero = None if points is None else np.asarray(points.numpy()).reshape(rows, -1)
        zero = np.full((rows, count), HALVED_POINT, np.uint8) if whole else zero
        scales = np.asarray(constant[2].numpy(), np.float32).reshape(rows, count)
        minima = None if shift is None else -_computed(shift)
        blocks = Blocks(np.asarray(constant[1].numpy()).reshape(rows, -1), scales, zero, minima)
        return dequantize(blocks, count * size, np.float32)[:, :columns]

    return Stored(str(node.inputs[1].name), values, (rows, columns), f"int{bits}", index, step)


def _gather(node: Any, constant: list[Any], index: int) -> Stored | None:
    """An embedding (rows, columns) in blocks along its last axis."""
    data, scales = constant[0], constant[2] if len(constant) > 2 else None
    if data is None or scales is None:
        return None
    points = constant[3] if len(constant) > 3 else None
    codes = np.asarray(data.numpy())
    rows, count = (int(size) for size in scales.shape.numpy())
    columns = count * _attribute(node, "block_size", 128)
    bits = _attribute(node, "bits", 4)
    step = float(np.abs(np.asarray(scales.numpy(), np.float32)).max(initial=0))

    minima = _shift(node)

    def values() -> Array:
        if codes.dtype == np.uint8:
            zero = None if points is None else np.asarray(points.numpy()).reshape(rows, -1)
            own = None if minima is None else _computed(minima)
            return dequantize(Blocks(codes, np.asarray(scales.numpy(), np.float32), zero, own), columns, np.float32)
        offset = 0 if points is None else np.asarray(points.numpy()).astype(np.float32)[:, :, None]
        scale = np.asarray(scales.numpy(), np.float32)[:, :, None]
        return ((codes.astype(np.float32).reshape(rows, count, -1) - offset) * scale).reshape(rows, -1)

    return Stored(str(node.inputs[0].name), values, (rows, columns), f"int{bits}", index, step)


def _linear(node: Any, constant: list[Any], index: int) -> Stored:
    """(x - zero point) * scale: one scale, one per slice of an axis, or one per block of it."""
    x, scale = constant[0], np.asarray(constant[1].numpy(), np.float32)
    point = constant[2] if len(constant) > 2 else None
    axis, block = _attribute(node, "axis", 1), _attribute(node, "block_size", 0)
    shape = tuple(int(size) for size in x.shape.numpy())

    def spread(array: Array) -> Array:
        if array.ndim == 0 or array.size == 1:
            return array.reshape(())
        if block:
            return np.repeat(array, block, axis=axis)[tuple(slice(size) for size in shape)]
        return array.reshape([-1 if place == axis % len(shape) else 1 for place in range(len(shape))])

    def values() -> Array:
        zero = spread(np.asarray(point.numpy()).astype(np.float32)) if point is not None else np.float32(0)
        return (np.asarray(x.numpy()).astype(np.float32) - zero) * spread(scale)

    return Stored(str(node.inputs[0].name), values, shape, str(x.dtype).lower(), index, float(np.abs(scale).max()))
