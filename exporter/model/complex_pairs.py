"""Complex numbers of a traced model as pairs of real tensors: ONNX's operators take no complex ones.

Some rotary embeddings multiply by e^(i angle). While :class:`ComplexAsPairs` is active, ``torch.polar`` and
``torch.view_as_complex`` give a :class:`Pair`, which has the operations of complex tensors that such models use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["ComplexAsPairs", "Pair", "tables_like"]


class Pair:
    """A complex tensor: its real and imaginary parts, real tensors of one shape."""

    def __init__(self, real: Tensor, imag: Tensor) -> None:
        self.real, self.imag = real, imag

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.real, self.imag))

    def __mul__(self, other: Any) -> Pair:
        """The product with a complex tensor, a real one or a number."""
        if not isinstance(other, Pair):
            return Pair(self.real * other, self.imag * other)
        return Pair(self.real * other.real - self.imag * other.imag, self.real * other.imag + self.imag * other.real)

    def __getitem__(self, index: Any) -> Pair:
        return Pair(self.real[index], self.imag[index])

    @property
    def device(self) -> torch.device:
        """Of both parts."""
        return self.real.device

    def unsqueeze(self, dim: int) -> Pair:
        """One more axis of size 1."""
        return Pair(self.real.unsqueeze(dim), self.imag.unsqueeze(dim))

    def to(self, *_: Any, **__: Any) -> Pair:
        """Itself: a trace has one device, and the parts have the dtype of what they were made from."""
        return self

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], _types: Any, args: tuple[Any, ...] = (), _kwargs: Any = None
    ) -> Any:
        """``torch.view_as_real``, which ends every use of complex numbers."""
        return torch.stack(tuple(args[0]), dim=-1) if func is torch.view_as_real else NotImplemented


class ComplexAsPairs(TorchFunctionMode):
    """While active, what makes complex tensors of real ones makes :class:`Pair`."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Intercept one torch call; see :class:`torch.overrides.TorchFunctionMode`."""
        if func is torch.polar:
            absolute, angle = args
            return Pair(absolute * angle.cos(), absolute * angle.sin())
        if func is torch.view_as_complex:
            return Pair(args[0][..., 0], args[0][..., 1])
        return func(*args, **(kwargs or {}))


def tables_like(output: Any, tables: Sequence[Tensor]) -> Any:
    """(cos, sin) in the form that a rotary module gives them: one complex tensor, or two real ones."""
    return Pair(*tables) if isinstance(output, Pair) else tuple(tables)
