"""A PyTorch model that holds one module's weights at a time: read before its forward, dropped after it.

The modules are transformers' own and compute what they always compute, so results are the same to the bit. What a model
costs is its largest single matrix; what it takes is reading all weights once per call. A value that a model reads
outside the module that owns it is still on the meta device, so such a model fails instead of giving wrong numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = ["Stored", "apply_linear", "stream_weights", "widen_as_called"]

Stored = Mapping[str, Path]  # which file holds a tensor


def stream_weights(model: Any, stored: Stored) -> list[str]:
    """Hook every module that has parameters of its own.

    Args:
        model: Parameters on the meta device, in the dtypes that they are converted to.
        stored: Files by tensor name; tied parameters under any of their names.

    Returns:
        Names of parameters that no file holds; nothing must be run then.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    lacking: list[str] = []
    for module in model.modules():
        owned: dict[str, str] = {}
        for key, parameter in module._parameters.items():
            if parameter is None or not parameter.is_meta:
                continue
            found = next((name for name in names[id(parameter)] if name in stored), None)
            if found is None:
                lacking.append(names[id(parameter)][0])
            else:
                owned[key] = found
        if owned and isinstance(module, nn.Embedding):
            _hook_table(module, _rows_of(stored, owned["weight"]), module.weight.dtype)
        elif owned:
            _hook(module, stored, owned)
    return lacking


def widen_as_called(model: nn.Module) -> None:
    """Let a float32 model compute in float64: each module's weights are widened before its forward, dropped after it.

    The numbers are those of ``model.double()``; what it takes is the float32 model and its largest module in float64.
    """
    for name, buffer in list(model.named_buffers()):
        if buffer.dtype == torch.float32:
            owner = model.get_submodule(name.rpartition(".")[0])
            owner._buffers[name.rpartition(".")[2]] = buffer.double()
    for module in model.modules():
        owned = {key: value for key, value in module._parameters.items() if value is not None}
        if owned and isinstance(module, nn.Embedding):
            _hook_table(module, owned["weight"].data.__getitem__, torch.float64)
        elif any(value.dtype == torch.float32 for value in owned.values()):
            _widen(module, owned)


def _widen(module: nn.Module, owned: Mapping[str, nn.Parameter]) -> None:
    def widen(*_: Any) -> None:
        module._parameters.update({key: _parameter(value.data, torch.float64) for key, value in owned.items()})

    def drop(*_: Any) -> None:
        module._parameters.update(owned)

    module.register_forward_pre_hook(widen)
    module.register_forward_hook(drop)


def apply_linear(module: nn.Module, entering: torch.Tensor) -> Any:
    """A module's output; of a linear layer made of a block of its rows at a time, which is all that is ever widened."""
    rows = getattr(module, _ROWS, None)
    if rows is None and type(module) is nn.Linear and not module.weight.is_meta:
        weight = module.weight
        rows = lambda start, stop: weight[start:stop]  # noqa: E731
    if rows is None or type(module) is not nn.Linear:
        return module(entering)
    with torch._C.DisableTorchFunction():
        parts = [
            nn.functional.linear(entering, rows(start, start + _BLOCK).to(entering.dtype))
            for start in range(0, module.out_features, _BLOCK)
        ]
        made = torch.cat(parts, dim=-1)
        bias = None if module.bias is None else module.bias if not module.bias.is_meta else getattr(module, _BIAS)()
        return made if bias is None else made + bias.to(entering.dtype)


_ROWS, _BIAS = "kvparity_rows", "kvparity_bias"  # how a linear layer that is streamed is read in parts
_BLOCK = 16_384  # rows of a linear layer at a time


def _hook(module: nn.Module, stored: Stored, owned: Mapping[str, str]) -> None:
    empty = dict(module._parameters)
    dtypes = {key: value.dtype for key, value in empty.items() if value is not None}

    def load(*_: Any) -> None:
        for key, name in owned.items():
            module._parameters[key] = _parameter(_read(stored, name, slice(None)), dtypes[key])

    def drop(*_: Any) -> None:
        module._parameters.update(empty)

    module.register_forward_pre_hook(load)
    module.register_forward_hook(drop)
    if type(module) is nn.Linear:
        setattr(module, _ROWS, lambda start, stop: _read(stored, owned["weight"], slice(start, stop)))
        setattr(module, _BIAS, lambda: _read(stored, owned["bias"], slice(None)))


def _hook_table(module: nn.Embedding, take: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype) -> None:
    """A table of embeddings: only the rows that are asked for are read, and the ids renumbered."""
    empty = module.weight
    module.padding_idx = None  # it matters to gradients alone, and lies outside a table of the rows asked for

    def load(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        wanted, places = torch.unique(args[0], return_inverse=True)
        module._parameters["weight"] = _parameter(take(wanted), dtype)
        return (places, *args[1:])

    def drop(*_: Any) -> None:
        module._parameters["weight"] = empty

    module.register_forward_pre_hook(load)
    module.register_forward_hook(drop)


def _rows_of(stored: Stored, name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda wanted: torch.cat([_read(stored, name, slice(int(row), int(row) + 1)) for row in wanted])


def _parameter(tensor: torch.Tensor, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(tensor.to(dtype) if tensor.is_floating_point() else tensor, requires_grad=False)


def _read(stored: Stored, name: str, rows: slice) -> torch.Tensor:
    from safetensors import safe_open

    # Lifting (contract/float64.py) must not reach into the reader, which would take float32 files for float64 ones.
    with torch._C.DisableTorchFunction(), safe_open(stored[name], framework="pt") as file:
        part: Callable[[slice], Any] = file.get_slice(name).__getitem__
        return part(rows) if file.get_slice(name).get_shape() else file.get_tensor(name)
