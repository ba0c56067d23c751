"""Dtype names of ports and weights as numpy has them."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["numpy_dtype"]


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Numpy dtype of a name, bfloat16 included."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)
