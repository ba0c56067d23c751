"""Inputs that the host computes for the ``bare`` profile, in numpy: masks and rotary tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from kvparity.exporter.contract.dtypes import numpy_dtype
from kvparity.exporter.contract.spec import HostInput, RopeSpec

__all__ = ["compute", "table", "visible"]

Array = npt.NDArray[np.generic]


def compute(
    items: Sequence[HostInput], inputs: Mapping[str, Array], rows: Mapping[int | None, int], dtype: str
) -> dict[str, Array]:
    """Every host input of one call by port name.

    Args:
        items: What to compute, from the manifest.
        inputs: ``attention_mask`` (batch, total) and ``position_ids`` (batch, sequence) of the call.
        rows: Cache rows that layers of a window see, this call's included, by window (None for full layers).
        dtype: Of the results; angles are computed in float64 for float64 and in float32 for all others, as
            transformers does.
    """
    positions, found = inputs["position_ids"], {}
    for item in items:
        if item.rope is None:
            seen = visible(inputs["attention_mask"], positions.shape[1], rows[item.window], item.window)
            array = np.where(seen[:, None], 0.0, item.blocked)
        else:
            array = table(item.rope, item.kind, positions, "float64" if dtype == "float64" else "float32")
        found[item.name] = array.astype(numpy_dtype(dtype))
    return found


def visible(attention_mask: Array, queries: int, rows: int, window: int | None) -> npt.NDArray[np.bool_]:
    """Which of the last ``rows`` slots each of the last ``queries`` slots sees: (batch, queries, rows)."""
    total = attention_mask.shape[1]
    query = np.arange(total - queries, total)[:, None]
    key = np.arange(total - rows, total)[None, :]
    seen = (key <= query) & (attention_mask[:, None, total - rows :] == 1)
    return seen if window is None else seen & (query - key < window)


def table(rope: RopeSpec, part: str, positions: Array, dtype: str) -> Array:
    """Cos or sin of position times frequency: (batch, sequence, columns)."""
    frequencies = np.asarray(rope.inv_freq, dtype)
    angle = positions.astype(dtype)[..., None] * frequencies
    if rope.arrangement == "halves":
        angle = np.concatenate([angle, angle], axis=-1)
    elif rope.arrangement == "pairs":
        angle = np.repeat(angle, 2, axis=-1)
    return (np.cos(angle) if part == "cos" else np.sin(angle)) * np.asarray(rope.scaling, dtype)
