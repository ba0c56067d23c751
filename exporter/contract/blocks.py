"""How quantised weights are laid out in a bundle, and what they stand for: numpy only, for exporter and runners alike.

A weight (rows, columns) is cut along its columns into blocks that share a scale, a zero point and a minimum, the first
two as ONNX Runtime's MatMulNBits and GatherBlockQuantized read them: element = (code - zero point) x scale - minimum.
Its file holds, instead of ``NAME``, ``NAME.blocks`` (rows, columns x bits / 8) uint8 with the first of several codes
in a byte's low bits, ``NAME.scales`` (rows, blocks) in the bundle's dtype, ``NAME.zero_points`` (rows, bytes) uint8,
packed as the codes, and ``NAME.minima`` (rows, blocks) as the scales; without zero points every one is 2^(bits - 1),
without minima every one is 0. Minima are of GGUF's types Q4_1, Q5_1, Q2_K, Q4_K and Q5_K, whose zero points are all 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "BLOCKS",
    "HALVED_POINT",
    "MINIMA",
    "PARTS",
    "SCALES",
    "ZERO_POINTS",
    "Blocks",
    "dequantize",
    "halved_input",
    "pack",
    "quantized_names",
    "unpack",
]

HALVED_POINT = 8 + 16 * 8  # of a byte that is read as two four-bit codes of zero point 8
PARTS = BLOCKS, SCALES, ZERO_POINTS, MINIMA = ".blocks", ".scales", ".zero_points", ".minima"
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Blocks:
    """One quantised weight.

    Attributes:
        codes: (rows, columns x bits / 8) uint8, packed.
        scales: (rows, blocks) float32 or float16.
        zero_points: (rows, bytes) uint8, packed; None where all are 2^(bits - 1).
        minima: (rows, blocks) as the scales; None where all are 0.
    """

    codes: Bytes
    scales: npt.NDArray[Any]
    zero_points: Bytes | None = None
    minima: npt.NDArray[Any] | None = None

    @classmethod
    def of(cls, part: Callable[[str], Any]) -> Blocks:
        """A weight from a function that gives the array of each of :data:`PARTS`, None where there is none."""
        return cls(*(part(name) for name in PARTS))

    def __getitem__(self, rows: Any) -> Blocks:
        """Some of its rows."""
        return self.of(lambda name: None if self.part(name) is None else self.part(name)[rows])

    def part(self, name: str) -> Any:
        """The array of one of :data:`PARTS`."""
        return dict(zip(PARTS, (self.codes, self.scales, self.zero_points, self.minima), strict=True))[name]

    def bits(self, columns: int) -> int:
        """Bits of a code, for a weight of so many columns."""
        return 8 * self.codes.shape[1] // columns

    def block_size(self, columns: int) -> int:
        """Columns of a block."""
        return columns // int(self.scales.shape[1])


def unpack(packed: Bytes, bits: int, count: int) -> Bytes:
    """The first ``count`` codes of each row of (rows, bytes)."""
    if bits == 8:
        return packed[:, :count]
    low = np.stack([packed & 15, packed >> 4], axis=-1)
    return low.reshape(len(packed), -1)[:, :count]


def pack(codes: Bytes, bits: int) -> Bytes:
    """Codes (rows, count) to (rows, bytes); a last half byte is zero."""
    if bits == 8:
        return codes
    if codes.shape[1] % 2:
        codes = np.pad(codes, ((0, 0), (0, 1)))
    packed: Bytes = (codes[:, 0::2] | (codes[:, 1::2] << 4)).astype(np.uint8, copy=False)
    return packed


def dequantize(blocks: Blocks, columns: int, dtype: npt.DTypeLike = np.float64) -> npt.NDArray[Any]:
    """What a weight stands for: (rows, columns).

    Args:
        blocks: The weight.
        columns: Of the weight; codes may be padded to whole bytes.
        dtype: float64 holds every product exactly; float32 is what engines and PyTorch compute with.
    """
    rows, count = blocks.scales.shape
    bits = blocks.bits(columns)
    points: npt.NDArray[Any] = np.full((rows, count), 1 << (bits - 1))
    if blocks.zero_points is not None:
        points = unpack(blocks.zero_points, bits, count)
    codes = unpack(blocks.codes, bits, columns).reshape(rows, count, -1)
    whole = codes.astype(np.int16) - points[:, :, None].astype(np.int16)
    values = whole.astype(dtype) * blocks.scales[:, :, None].astype(dtype)
    if blocks.minima is not None:
        values -= blocks.minima[:, :, None].astype(dtype)
    return values.reshape(rows, columns)


def quantized_names(names: Iterable[str] | Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the weights that a file holds quantised, in order."""
    return tuple(sorted(name.removesuffix(BLOCKS) for name in names if name.endswith(BLOCKS)))


def halved_input(node: Any) -> Any:
    """X of a product of x and 16 x by turns with bytes that are read as two four-bit codes; None for another product.

    Such a product is x times (whole bytes - :data:`HALVED_POINT`) x scales.

    Args:
        node: A MatMulNBits of an onnx_ir graph.
    """
    value = node.inputs[0]
    for op_type in ("Reshape", "Mul", "Unsqueeze"):
        made = value.producer() if value is not None else None
        if made is None or made.op_type != op_type:
            return None
        factors = made.inputs[1].const_value if op_type == "Mul" and made.inputs[1] is not None else None
        if op_type == "Mul" and (factors is None or factors.numpy().tolist() != [1, 16]):
            return None
        value = made.inputs[0]
    plain = node.attributes["bits"].as_int() == 4 and len([*filter(None, node.inputs)]) == 3
    return value if plain else None
