"""Masks for models whose attention does not go through transformers' attention interface.

Such models compute attention themselves, from the mask that one of transformers' mask functions gives them. While a
model is traced, these functions give the masks of the cache layout instead.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from kvparity.exporter.contract.errors import ExportError

__all__ = ["calls_interface", "mask_functions"]

_KINDS = {
    "create_causal_mask": "full",
    "create_sliding_window_causal_mask": "sliding",
    "create_chunked_causal_mask": "chunked",
}


def calls_interface(model: Any) -> bool:
    """Whether the layers of a model look their attention function up in transformers' attention interface."""
    return any(hasattr(source, "ALL_ATTENTION_FUNCTIONS") for source in _sources(model))


@contextmanager
def mask_functions(model: Any, mask: Callable[[str], Tensor]) -> Iterator[None]:
    """While active, transformers' mask functions give ``mask(kind)`` to this model's code, by kind of layer.

    A model whose code makes masks in another way is not given any, which :meth:`exporter.model.attention.Masks.check`
    refuses.
    """
    found = [(source, name) for source in _sources(model) for name in _KINDS if hasattr(source, name)]
    before = [(source, name, getattr(source, name)) for source, name in found]
    for source, name in found:
        setattr(source, name, _giving(mask, _KINDS[name]))
    try:
        yield
    finally:
        for source, name, function in before:
            setattr(source, name, function)


def _giving(mask: Callable[[str], Tensor], kind: str) -> Callable[..., Tensor]:
    def give(*_: Any, or_mask_function: Any = None, and_mask_function: Any = None, **__: Any) -> Tensor:
        if or_mask_function is not None or and_mask_function is not None:
            raise ExportError("its mask has a rule of its own beside causality and window, which would be lost")
        return mask(kind)

    return give


def _sources(model: Any) -> list[Any]:
    """The modules of Python in which a model's classes are written."""
    return [sys.modules[name] for name in dict.fromkeys(type(module).__module__ for module in model.modules())]
