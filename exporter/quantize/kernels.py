"""Rounds a weight to blocks with ONNX Runtime's own quantisers; some rows at a time, so no copy of a table is made."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kvparity.exporter.contract.blocks import Blocks, dequantize, pack, unpack
from kvparity.exporter.contract.errors import ExportError

__all__ = ["quantize_rows", "quantize_weight"]

_INT8 = 3  # onnx.TensorProto.INT8
_ELEMENTS = 1 << 24  # of a slab of rows


def quantize_weight(weight: npt.NDArray[Any], bits: int, block_size: int, algorithm: str) -> Blocks:
    """Quantise (rows, columns) along its columns.

    Args:
        weight: Any floating-point dtype; a memory map is read slab by slab.
        bits: 4 or 8.
        block_size: Columns that share a scale; divides the columns.
        algorithm: ``rtn`` rounds between the block's smallest and largest value, ``k_quant`` searches the scale and
            zero point of least weighted error (llama.cpp's).

    Raises:
        ExportError: onnxruntime is not installed.
    """
    rows, columns = weight.shape
    step = max(1, _ELEMENTS // columns)
    quantise = _k_quant if algorithm == "k_quant" else _rtn
    slabs = [
        quantise(np.ascontiguousarray(weight[start : start + step], np.float32), bits, block_size)
        for start in range(0, rows, step)
    ]
    return Blocks(*(np.concatenate([slab[part] for slab in slabs]) for part in range(3)))


def quantize_rows(weight: npt.NDArray[Any]) -> Blocks:
    """Quantise (rows, columns) to eight bits with one scale per row and no zero point, as ``quantize_dynamic`` does.

    ONNX Runtime's codes are signed; 128 is added, so that a row is a block like any other.
    """
    try:
        from onnxruntime.quantization.quant_utils import quantize_data
    except ImportError as error:
        raise ExportError("--quantize needs ONNX Runtime's quantisers: pip install onnxruntime") from error
    rows, columns = weight.shape
    codes, scales = np.zeros((rows, columns), np.uint8), np.zeros((rows, 1), np.float32)
    for row in range(rows):
        _, scales[row], signed = quantize_data(np.asarray(weight[row], np.float32), _INT8, symmetric=True)
        codes[row] = signed.astype(np.int16) + 128
    return Blocks(codes, scales, None)


def _rtn(weight: npt.NDArray[np.float32], bits: int, block_size: int) -> tuple[Any, Any, Any]:
    kernels = _kernels()
    rows, columns = weight.shape
    blocks = columns // block_size
    codes = np.zeros((rows, blocks, block_size * bits // 8), np.uint8)
    scales = np.zeros((rows, blocks), np.float32)
    points = np.zeros((rows, -(-blocks * bits // 8)), np.uint8)
    kernel = kernels.quantize_matmul_4bits if bits == 4 else kernels.quantize_matmul_8bits
    kernel(codes, np.ascontiguousarray(weight.T), scales, points, block_size, rows, columns, False)
    return codes.reshape(rows, -1), scales, points


def _k_quant(weight: npt.NDArray[np.float32], bits: int, block_size: int) -> tuple[Any, Any, Any]:
    """Per block the better of k_quant and rounding: k_quant fails where a block's values share a sign or are equal."""
    plain = _rtn(weight, bits, block_size)
    from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor_k_quant_cpu

    rows, columns = weight.shape
    count = columns // block_size
    with np.errstate(divide="ignore", invalid="ignore"):  # blocks of equal values
        codes, scales, points = quant_tensor_k_quant_cpu(weight, bits, block_size)
    searched = Blocks(
        pack(codes.astype(np.uint8).reshape(rows, columns), bits),
        np.nan_to_num(scales.astype(np.float32).reshape(rows, count)),
        pack(points.reshape(rows, count), bits),
    )
    better = _error(searched, weight) < _error(Blocks(*plain), weight)
    return _choose(better, searched, Blocks(*plain), bits, columns)


def _error(blocks: Blocks, weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Sum of squared errors of each block: (rows, blocks)."""
    error = np.square(dequantize(blocks, weight.shape[1], np.float32) - weight)
    total: npt.NDArray[np.float32] = error.reshape(*blocks.scales.shape, -1).sum(axis=2)
    return total


def _choose(first: npt.NDArray[np.bool_], one: Blocks, other: Blocks, bits: int, columns: int) -> tuple[Any, Any, Any]:
    rows, count = first.shape
    assert one.zero_points is not None
    assert other.zero_points is not None
    codes = [unpack(item.codes, bits, columns).reshape(rows, count, -1) for item in (one, other)]
    points = [unpack(item, bits, count) for item in (one.zero_points, other.zero_points)]
    chosen = np.where(first[:, :, None], *codes).reshape(rows, columns)
    return pack(chosen, bits), np.where(first, one.scales, other.scales), pack(np.where(first, *points), bits)


def _kernels() -> Any:
    try:
        from onnxruntime.capi import _pybind_state
    except ImportError as error:
        raise ExportError("--quantize needs ONNX Runtime's quantisers: pip install onnxruntime") from error
    return _pybind_state
