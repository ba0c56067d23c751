"""Runs Hugging Face models in true float64: the float32 casts that they contain become float64 casts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

__all__ = ["LiftFloat64", "lifted"]


class LiftFloat64(TorchFunctionMode):
    """While active, ``x.float()`` and every float32 dtype argument mean float64.

    Models upcast norms, softmax and rotary angles to float32; in a float64 evaluation those casts would throw away
    the very digits that it is made for. Used the same way around the reference and around the trace.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Intercept one torch call; see :class:`torch.overrides.TorchFunctionMode`."""
        kwargs = {key: _lift(value) for key, value in (kwargs or {}).items()}
        if func is torch.Tensor.float:
            return args[0].to(torch.float64)
        return func(*(_lift(value) for value in args), **kwargs)


def _lift(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


@contextmanager
def lifted(active: bool) -> Iterator[None]:
    """:class:`LiftFloat64` and float64 as torch's default dtype where ``active``, nothing otherwise."""
    if not active:
        yield
        return
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with LiftFloat64():
            yield
    finally:
        torch.set_default_dtype(default)
