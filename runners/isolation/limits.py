"""Limits for graphs that nobody vouches for: inside :func:`limited`, every graph runs in a process that keeps them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["limited", "settings"]

_settings: ContextVar[Mapping[str, str]] = ContextVar("limits", default={})  # noqa: B039  (never changed in place)


@contextmanager
def limited(seconds: float, megabytes: int | None = None) -> Iterator[None]:
    """Whatever runs a graph in this block, an engine or the float64 evaluation, is bounded.

    Args:
        seconds: Most that one call may take, and that loading may take.
        megabytes: Most address space of each process; None takes the machine's memory, 0 sets no limit.
    """
    if megabytes is None:
        megabytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    words = f"{seconds:g}"
    token = _settings.set({"limit": words, "load_limit": words, "memory_mb": str(megabytes)})
    try:
        yield
    finally:
        _settings.reset(token)


def settings() -> Mapping[str, str]:
    """The limits as settings of a runner; empty outside such a block."""
    return _settings.get()
