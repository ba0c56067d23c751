"""Keeps the values of a GGUF file's quantised tensors where MatMulNBits' blocks can hold exactly these.

Q4_0, Q5_0, Q8_0 and Q6_K have blocks with a scale and a fixed zero point. The other K types have a minimum per block
instead, which MatMulNBits takes as a fractional zero point, at a fiftieth of its speed on a CPU: they are rounded anew.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvparity.exporter.checkpoint.gguf_file import read_gguf
from kvparity.exporter.checkpoint.gguf_tensors import gguf_names
from kvparity.exporter.contract.blocks import Blocks, dequantize, pack

__all__ = ["gguf_blocks"]

Array = npt.NDArray[Any]
_SLAB = 1 << 14  # rows compared at a time


def gguf_blocks(path: Path, meta_model: Any, bits: int) -> Callable[[str, Array], Blocks | None]:
    """A function from a weight's name and float values to its blocks, None where they would not be exactly these.

    Args:
        path: The GGUF file.
        meta_model: The model without weights; its names decide what the file's are called.
        bits: Of the codes wanted; types that need more are left out.
    """
    file = read_gguf(path)
    processor, names = gguf_names(file, meta_model)
    stored = {names[name]: (name, tensor) for name, tensor in file.tensors.items() if name in names}

    def blocks(name: str, weight: Array) -> Blocks | None:
        if name not in stored:
            return None
        own, tensor = stored[name]
        decode = _TYPES.get(tensor.kind.name)
        if decode is None or (bits < 8 and tensor.kind.name != "Q4_0"):
            return None
        codes, scales = decode(np.ascontiguousarray(tensor.rows))
        order = _row_order(processor, own, len(weight))
        if codes.shape != weight.shape or order is None:
            return None
        center = np.int16(1 << (bits - 1))
        made = Blocks(pack((codes[order] + center).astype(np.uint8), bits), scales[order], None)
        return made if _stands_for(made, weight) else None

    return blocks


def _row_order(processor: Any, name: str, rows: int) -> npt.NDArray[np.int64] | None:
    """Which row of the file each row of the weight is: llama.cpp turns those of some projections around."""
    arguments: dict[str, Any] = {"tensor_key_mapping": {}, "parsed_parameters": {}}
    moved = processor.process(weights=np.arange(rows)[:, None], name=name, **arguments).weights
    order = np.asarray(moved)[:, 0]
    return order if np.array_equal(np.sort(order), np.arange(rows)) else None


def _stands_for(blocks: Blocks, weight: Array) -> bool:
    """Whether every value is the same, bit for bit."""
    for start in range(0, len(weight), _SLAB):
        rows = slice(start, start + _SLAB)
        part = Blocks(blocks.codes[rows], blocks.scales[rows], None)
        if not np.array_equal(dequantize(part, weight.shape[1], np.float32), weight[rows]):
            return False
    return True


def _split(rows: Array, size: int) -> Array:
    """(rows, blocks, bytes of a block)."""
    return rows.view(np.uint8).reshape(len(rows), -1, size)


def _scale(block: Array) -> Array:
    """(rows, blocks) float32 from the two bytes of a half."""
    return np.ascontiguousarray(block).view(np.float16)[..., 0].astype(np.float32)


def _nibbles(block: Array) -> Array:
    return np.concatenate([block & 15, block >> 4], axis=-1).astype(np.int16)


def _flat(codes: Array) -> Array:
    return codes.reshape(len(codes), -1)


def _q4_0(rows: Array) -> tuple[Array, Array]:
    block = _split(rows, 18)
    return _flat(_nibbles(block[..., 2:]) - 8), _scale(block[..., :2])


def _q5_0(rows: Array) -> tuple[Array, Array]:
    block = _split(rows, 22)
    high = np.unpackbits(block[..., 2:6], axis=-1, bitorder="little").astype(np.int16)
    return _flat(_nibbles(block[..., 6:]) + 16 * high - 16), _scale(block[..., :2])


def _q8_0(rows: Array) -> tuple[Array, Array]:
    block = _split(rows, 34)
    return _flat(block[..., 2:].view(np.int8).astype(np.int16)), _scale(block[..., :2])


def _q6_k(rows: Array) -> tuple[Array, Array]:
    """256 codes in two halves: 4 bits in 64 bytes, 2 bits in 32; 16 scales of 8 bits times one half."""
    block = _split(rows, 210)
    low = block[..., :128].reshape(*block.shape[:2], 2, 2, 32)
    high = block[..., 128:192].reshape(*block.shape[:2], 2, 1, 32)
    four = np.concatenate([low & 15, low >> 4], axis=-2)
    two = np.concatenate([(high >> shift) & 3 for shift in (0, 2, 4, 6)], axis=-2)
    codes = (four | (two << 4)).astype(np.int16) - 32
    factors = block[..., 192:208].view(np.int8).astype(np.float32)
    return _flat(codes), _flat(_scale(block[..., 208:])[..., None] * factors)


_TYPES: dict[str, Callable[[Array], tuple[Array, Array]]] = {"Q4_0": _q4_0, "Q5_0": _q5_0, "Q8_0": _q8_0, "Q6_K": _q6_k}
