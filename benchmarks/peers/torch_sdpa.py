"""PyTorch with scaled_dot_product_attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch_eager


def open(checkpoint: Path, threads: int) -> Any:
    return torch_eager.open(checkpoint, threads, "sdpa")
