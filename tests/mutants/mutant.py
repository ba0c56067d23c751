"""What a mutant is."""

from __future__ import annotations

from dataclasses import dataclass

from tests.mutants.editor import Edit

__all__ = ["BOTH", "Mutant"]

BOTH = ("prefill", "decode")


@dataclass(frozen=True)
class Mutant:
    """One semantic fault.

    Attributes:
        name: Short and unique.
        what: The fault in words.
        where: Glob pattern of the probe that a right answer names; alternatives are separated by ``|``.
        edit: Puts the fault into a graph.
        graphs: Which graphs get it.
        equivalent: Why float64 results do not change, where they do not.
        quick: Part of the default tests.
    """

    name: str
    what: str
    where: str
    edit: Edit
    graphs: tuple[str, ...] = BOTH
    equivalent: str = ""
    quick: bool = False
