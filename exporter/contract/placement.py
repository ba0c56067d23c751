"""Placement: where a weight lies in the bundle, for graphs to point at as external data."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Placement"]


@dataclass(frozen=True)
class Placement:
    """Bytes of a weight.

    Attributes:
        location: File in the bundle's folder.
        offset: First byte.
        length: Bytes.
        dtype: As stored.
        shape: As stored.
    """

    location: str
    offset: int
    length: int
    dtype: str
    shape: tuple[int, ...]
