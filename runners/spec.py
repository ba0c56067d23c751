"""A runner as it is named: the engine and its settings; standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["RunnerSpec"]


@dataclass(frozen=True)
class RunnerSpec:
    """A runner as named on the command line: ``ort``, or ``ort:threads=1,level=none``.

    Attributes:
        name: Its name.
        options: Its settings.
        named: Whether somebody asked for this runner; one of ``all`` need not take the bundle.
    """

    name: str
    options: Mapping[str, str] = field(default_factory=dict)
    named: bool = field(default=True, compare=False)

    def __str__(self) -> str:
        settings = ",".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name}:{settings}" if settings else self.name
