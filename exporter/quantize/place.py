"""Replaces the weights of a bundle by quantised ones, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvparity.exporter.checkpoint.folder import INDEX
from kvparity.exporter.contract.blocks import MINIMA, PARTS, SCALES, Blocks
from kvparity.exporter.contract.dtypes import numpy_dtype
from kvparity.exporter.contract.placement import Placement
from kvparity.exporter.contract.spec import ExportOptions
from kvparity.exporter.quantize.file import FILE, write_tensors
from kvparity.exporter.quantize.kernels import quantize_rows, quantize_weight

__all__ = ["Placed", "place_quantized"]

Kept = Callable[[str, npt.NDArray[Any]], Blocks | None]


@dataclass(frozen=True)
class Placed:
    """What was written.

    Attributes:
        placements: Where each tensor lies: quantised weights as their parts (``contract.blocks``), others whole.
        kept_exactly: Quantised weights whose values are those of a quantised source; None where there is none.
    """

    placements: dict[str, Placement]
    kept_exactly: tuple[str, ...] | None


def place_quantized(
    folder: Path,
    placements: Mapping[str, Placement],
    chosen: Mapping[str, int],
    options: ExportOptions,
    source: Kept | None = None,
) -> Placed:
    """Write the quantised file, and remove those that it replaces.

    Args:
        folder: The bundle being written; it holds the weights as they are.
        placements: Where.
        chosen: Weights to quantise and bits of their codes; with ``gguf`` those of them that the source gives.
        options: How.
        source: Gives a weight's blocks where the source holds it quantised and they stand for exactly these values.
    """
    exact: list[str] = []
    longest = max(map(len, placements)) + max(map(len, PARTS))
    with write_tensors(folder / f"{FILE}.new", len(PARTS) * len(placements), longest) as write:
        for name in sorted(placements):
            array = read_placed(folder, placements[name])
            blocks = source(name, array) if source is not None and name in chosen else None
            if blocks is not None and blocks.bits(array.shape[-1]) <= chosen[name]:
                exact.append(name)
            elif name in chosen and options.quantize != "gguf":
                blocks = _rounded(array, chosen[name], options)
            if blocks is None:
                write(name, array)
                continue
            for part in PARTS:
                values = blocks.part(part)
                if values is not None:
                    write(
                        name + part, values.astype(numpy_dtype(options.dtype)) if part in (SCALES, MINIMA) else values
                    )
    for location in {place.location for place in placements.values()}:
        (folder / location).unlink()
    (folder / INDEX).unlink(missing_ok=True)
    (folder / f"{FILE}.new").rename(folder / FILE)
    return Placed(write.placements(FILE), None if source is None else tuple(exact))


def _rounded(array: npt.NDArray[Any], bits: int, options: ExportOptions) -> Blocks:
    if options.quantize == "int8-dynamic" and array.ndim == 2:
        return quantize_rows(array)
    flat = array.reshape(-1, array.shape[-1])  # experts one after the other
    return quantize_weight(flat, bits, options.block_size, options.quantizer)


def read_placed(folder: Path, place: Placement) -> npt.NDArray[Any]:
    """A tensor of a bundle's weights file, as a memory map."""
    dtype = numpy_dtype(place.dtype)
    count = place.length // dtype.itemsize
    if not count:
        return np.zeros(place.shape, dtype)
    array = np.memmap(folder / place.location, dtype, "r", place.offset, (count,))
    return array.reshape(place.shape)
