"""The quantised tensors of a GGUF file in blocks that stand for exactly its values.

No type's bytes are unpacked here: gguf's own reader is asked three times for each tensor. With codes of one and no
minimum it gives the scales; with a factor of zero the minima, negated; with factors and scales of one the codes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvparity.exporter.checkpoint.gguf_file import GgufTensor, read_gguf
from kvparity.exporter.checkpoint.gguf_tensors import gguf_names
from kvparity.exporter.contract.blocks import Blocks, dequantize, pack

__all__ = ["TYPES", "decode", "gguf_blocks"]

Array = npt.NDArray[Any]
_ELEMENTS = 1 << 23  # decoded at a time
_ONE = b"\x00\x3c"  # of a half


@dataclass(frozen=True)
class _Type:
    """Where the bytes of one of ggml's block types lie, and which of them stand for one.

    Attributes:
        bits: Of the codes that hold its own: 4 or 8.
        zero: Code of zero; 2^(bits - 1), or 0 where there are minima.
        size: Columns that share a scale.
        factor: First byte of the block's factor, a half.
        codes: Bytes from, to, and the byte that makes every code one, of each part of the codes.
        scales: The same of the scales that the factor multiplies.
        minimum: First byte of the factor of the minima, or of the minimum; None without.
        one: The factor's bytes for one.
        step: A power of two that codes are multiplied by and scales divided by, exactly: codes fill their bits, so
            that a product of (code - middle) has no large sums that another term takes away again.
    """

    bits: int
    zero: int
    size: int
    factor: int
    codes: tuple[tuple[int, int, int], ...]
    scales: tuple[tuple[int, int, int], ...] = ()
    minimum: int | None = None
    one: bytes = _ONE
    step: int = 1


TYPES: Mapping[str, _Type] = {  # llama.cpp's ggml-common.h
    "Q4_0": _Type(4, 8, 32, 0, ((2, 18, 0x99),)),
    "Q4_1": _Type(4, 0, 32, 0, ((4, 20, 0x11),), minimum=2),
    "Q5_0": _Type(8, 128, 32, 0, ((2, 6, 0xFF), (6, 22, 0x11)), step=8),
    "Q5_1": _Type(8, 0, 32, 0, ((4, 8, 0), (8, 24, 0x11)), minimum=2, step=8),
    "Q8_0": _Type(8, 128, 32, 0, ((2, 34, 1),)),
    "Q2_K": _Type(4, 0, 16, 80, ((16, 80, 0x55),), ((0, 16, 1),), minimum=82, step=4),
    "Q3_K": _Type(4, 8, 16, 108, ((0, 32, 0xFF), (32, 96, 0x55)), ((96, 104, 0x11), (104, 108, 0xAA))),
    "Q4_K": _Type(4, 0, 32, 0, ((16, 144, 0x11),), ((4, 8, 1), (12, 16, 1)), minimum=2),
    "Q5_K": _Type(8, 0, 32, 0, ((16, 48, 0), (48, 176, 0x11)), ((4, 8, 1), (12, 16, 1)), minimum=2, step=8),
    "Q6_K": _Type(8, 128, 16, 208, ((0, 128, 0x11), (128, 192, 0xAA)), ((192, 208, 1),), step=4),
    "IQ4_NL": _Type(8, 128, 32, 0, ((2, 18, 0x88),)),
    "IQ4_XS": _Type(8, 128, 32, 0, ((8, 136, 0x88),), ((2, 4, 0xAA), (4, 8, 0x11))),
    "TQ1_0": _Type(4, 8, 256, 52, ((0, 52, 0xFF),)),
    "TQ2_0": _Type(4, 8, 256, 64, ((0, 64, 0xAA),)),
    "MXFP4": _Type(8, 128, 32, 0, ((1, 17, 0x11),), one=b"\x80", step=8),
}


def gguf_blocks(path: Path, meta_model: Any) -> Callable[[str, Array], Blocks | None]:
    """A function from a weight's name and float values to its blocks, None where they would not be exactly these.

    Args:
        path: The GGUF file.
        meta_model: The model without weights; its names decide what the file's are called.
    """
    file = read_gguf(path)
    processor, names = gguf_names(file, meta_model)
    stored = {names[name]: (name, tensor) for name, tensor in file.tensors.items() if name in names}

    def blocks(name: str, weight: Array) -> Blocks | None:
        own, tensor = stored.get(name, ("", None))
        if tensor is None or weight.ndim != 2 or tensor.shape != weight.shape:
            return None
        kind = TYPES.get(tensor.kind.name)
        order = _row_order(processor, own, len(weight))
        if kind is None or order is None:
            return None
        made = decode(tensor)[order]
        step = _step(weight)
        slabs = [slice(start, start + step) for start in range(0, len(weight), step)]
        same = (np.array_equal(dequantize(made[rows], weight.shape[1], np.float32), weight[rows]) for rows in slabs)
        return made if all(same) else None

    return blocks


def decode(tensor: GgufTensor) -> Blocks:
    """The blocks of a tensor (rows, columns) whose type is one of :data:`TYPES`, rows in the file's order."""
    kind, step = TYPES[tensor.kind.name], _step(np.broadcast_to(0, tensor.shape))
    slabs = [
        _decode(tensor.rows[start : start + step], tensor.kind, kind) for start in range(0, len(tensor.rows), step)
    ]
    return Blocks.of(
        lambda part: None if slabs[0].part(part) is None else np.concatenate([slab.part(part) for slab in slabs])
    )


def _decode(rows: Array, own: Any, kind: _Type) -> Blocks:
    from gguf import GGML_QUANT_SIZES
    from gguf import dequantize as read

    width = GGML_QUANT_SIZES[own][1]

    def values(changes: tuple[tuple[int, int, int], ...], factor: bytes | None = None) -> Array:
        """What the reader makes of the rows after some bytes were set; the minimum is not among it, unless asked."""
        block = np.array(rows).reshape(len(rows), -1, width)
        for start, stop, byte in changes:
            block[..., start:stop] = byte
        if factor is not None:
            block[..., kind.factor : kind.factor + len(factor)] = np.frombuffer(factor, np.uint8)
        return np.asarray(read(block.reshape(len(rows), -1), own))

    none = () if kind.minimum is None else ((kind.minimum, kind.minimum + 2, 0),)
    codes = values((*kind.scales, *none), kind.one).astype(np.int16) * kind.step + kind.zero
    scales = values((*kind.codes, *none))[:, :: kind.size] / np.float32(kind.step)
    minima = None if kind.minimum is None else -values((), b"\0\0")[:, :: kind.size]
    points = None
    if kind.zero != 1 << (kind.bits - 1):
        points = pack(np.full(scales.shape, kind.zero, np.uint8), kind.bits)
    return Blocks(pack(codes.astype(np.uint8), kind.bits), scales, points, minima)


def _step(weight: Array) -> int:
    """Rows decoded at a time."""
    return max(1, _ELEMENTS // max(1, weight.shape[-1]))


def _row_order(processor: Any, name: str, rows: int) -> npt.NDArray[np.int64] | None:
    """Which row of the file each row of the weight is: llama.cpp turns those of some projections around."""
    arguments: dict[str, Any] = {"tensor_key_mapping": {}, "parsed_parameters": {}}
    moved = processor.process(weights=np.arange(rows)[:, None], name=name, **arguments).weights
    order = np.asarray(moved)[:, 0]
    return order if np.array_equal(np.sort(order), np.arange(rows)) else None
