"""Half types: which weights transformers keeps in float32 there, and numbers that float16 cannot hold."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from kvparity.exporter.contract.errors import ExportError

__all__ = ["refuse_overflow", "set_half_types"]


def set_half_types(model: Any, config: Any, dtype: str) -> None:
    """Give the parameters of a model without weights the dtypes that ``from_pretrained`` gives them.

    That is ``dtype``, except where the class says so for single modules (``_keep_in_fp32_modules``) or makes a
    parameter of a dtype of its own, as routers and their biases are.

    Args:
        model: Parameters on the meta device, float32; changed in place.
        config: Its config.
        dtype: ``float16`` or ``bfloat16``.
    """
    import torch
    from accelerate import init_empty_weights

    kind = getattr(torch, dtype)
    with init_empty_weights(include_buffers=True):
        made = type(model)._from_config(config, dtype=kind)
    own = {**dict(made.named_parameters(remove_duplicate=False)), **dict(made.named_buffers(remove_duplicate=False))}
    kept = [_pattern(name) for name in model._get_dtype_plan(kind)]
    persistent = set(model.state_dict())
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in tensors:
        if name not in persistent or not tensor.is_floating_point():
            continue
        wanted = torch.float32 if any(pattern.search(name) for pattern in kept) else own[name].dtype
        tensor.data = tensor.data.to(wanted)


def _pattern(name: str) -> re.Pattern[str]:
    """A name of transformers' plan, which is part of a weight's name; ``*`` stands for anything."""
    return re.compile(name.replace("*", ".*"))


def refuse_overflow(name: str, array: npt.NDArray[Any], dtype: str) -> None:
    """Refuse numbers that would become infinite.

    Raises:
        ExportError: A finite number is beyond float16.
    """
    if dtype != "float16" or (array.dtype.itemsize == 2 and array.dtype.name == "float16"):
        return
    values = np.abs(array.astype(np.float32, copy=False))
    worst = float(values[np.isfinite(values)].max(initial=0.0))
    if worst >= 65520.0:  # from here on rounding gives infinity
        raise ExportError(
            f"{name} holds {worst:,.0f}, beyond float16's largest number of 65,504; use --dtype bfloat16 or float32"
        )
