"""Shapes of traced tensors: python gets sizes as nodes of the graph, where torch would give one example's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from kvparity.exporter.trace.record.sizes import UnsureError

__all__ = ["Shapes"]

_aten = torch.ops.aten


class Shapes(TorchFunctionMode):
    """Active while a module is traced, and while its nodes are translated.

    Args:
        sizes: The sizes of a tensor, None where it is not traced.
    """

    def __init__(self, sizes: Callable[[Tensor], tuple[Any, ...] | None]) -> None:
        super().__init__()
        self._sizes = sizes
        self._own: dict[Any, Callable[..., Any]] = {
            Tensor.shape.__get__: self._shape,
            Tensor.size: self._size,
            Tensor.numel: self._count,
            Tensor.nelement: self._count,
            Tensor.__len__: lambda x: self._size(x, 0),
            Tensor.__getitem__: _index,
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Intercept one torch call; see :class:`torch.overrides.TorchFunctionMode`."""
        own = self._own.get(func)
        return func(*args, **(kwargs or {})) if own is None else own(*args, **(kwargs or {}))

    def _shape(self, tensor: Tensor) -> Any:
        sizes = self._sizes(tensor)
        return _shape(tensor) if sizes is None else torch.Size(sizes)

    def _size(self, tensor: Tensor, dim: int | None = None) -> Any:
        return self._shape(tensor) if dim is None else self._shape(tensor)[dim]

    def _count(self, tensor: Tensor) -> Any:
        total: Any = 1
        for size in self._shape(tensor):
            total = total * size
        return total


def _shape(tensor: Tensor) -> Any:
    with torch._C.DisableTorchFunction():
        return tensor.shape


def _index(tensor: Tensor, index: Any) -> Any:
    """``tensor[index]``; with sizes in it, spelled out, because torch would compare them with the example's."""
    items = list(index) if isinstance(index, tuple) else [index]
    if not _has_size([(i.start, i.stop, i.step) if isinstance(i, slice) else i for i in items]):
        return Tensor.__getitem__(tensor, index)
    if Ellipsis in [item for item in items if not isinstance(item, (Tensor, torch.SymInt))]:
        at = next(place for place, item in enumerate(items) if item is Ellipsis)
        named = sum(item is not None for item in items) - 1
        items[at : at + 1] = [slice(None)] * (tensor.ndim - named)
    axis = 0
    for item in items:
        if item is None:
            tensor = tensor.unsqueeze(axis)
        elif isinstance(item, slice):
            if _is_whole(tensor, axis, item):
                axis += 1
                continue
            if not (item.start is None and item.stop is None and item.step is None):
                tensor = _aten.slice.Tensor(tensor, axis, item.start, item.stop, 1 if item.step is None else item.step)
        elif isinstance(item, (int, torch.SymInt)):
            tensor = tensor.select(axis, item)
            continue
        else:
            raise UnsureError("an index mixes sizes and tensors")
        axis += 1
    return tensor


def _is_whole(tensor: Tensor, axis: int, item: slice) -> bool:
    """Whether ``x[-n:]`` is all of the n elements there are, at every example."""
    if not isinstance(item.start, torch.SymInt) or item.stop is not None or item.step is not None:
        return False
    size = tensor.shape[axis]
    return isinstance(size, torch.SymInt) and [-value for value in item.start.node.values] == list(size.node.values)


def _has_size(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(map(_has_size, value))
    if isinstance(value, dict):
        return any(map(_has_size, value.values()))
    return isinstance(value, (torch.SymInt, torch.SymBool))
