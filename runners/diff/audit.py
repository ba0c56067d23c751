"""The weights audit as a record of a report: what a foreign package stores of every weight of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvparity.exporter.contract.foreign import Offer

__all__ = ["Audit", "ConstantRow", "PackageRecord", "WeightRow", "WeightState"]

WeightState = Literal["exact", "rounded", "differs", "missing"]


@dataclass(frozen=True)
class WeightRow:
    """One weight of the checkpoint.

    Attributes:
        name: The checkpoint's.
        state: ``exact``; ``rounded`` as its coding rounds; ``differs`` by more; ``missing``.
        how: How it is stored: ``as it is``, ``transposed``, ``rows 0 to 159 of …``, ``times 12.6``, ``plus 1``.
        coding: ``float32``, ``int4``, …; empty where it is missing.
        stored: Names of the initializers that hold it; more than one where it is stored more than once.
        error: Largest absolute difference.
        note: What is wrong, in words.
    """

    name: str
    state: WeightState
    how: str = ""
    coding: str = ""
    stored: tuple[str, ...] = ()
    error: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class ConstantRow:
    """A number of the model that a graph holds rounded.

    Attributes:
        name: Where it stands in the model, such as ``model.embed_tokens.scalar_embed_scale``.
        expected: The model's.
        found: The graph's.
        value: The graph's own name for it.
    """

    name: str
    expected: float
    found: float
    value: str


@dataclass(frozen=True)
class Audit:
    """What the weights audit found.

    Attributes:
        weights: A row per weight of the checkpoint.
        unknown: Stored tensors of the size of a weight that hold none of the checkpoint's, such as rotary tables.
        constants: Numbers that were rounded.
    """

    weights: tuple[WeightRow, ...] = ()
    unknown: tuple[str, ...] = ()
    constants: tuple[ConstantRow, ...] = ()

    @property
    def faults(self) -> tuple[WeightRow, ...]:
        """Weights that are missing, differ, or stand in another layer's place."""
        return tuple(row for row in self.weights if row.state in ("missing", "differs"))

    @property
    def codings(self) -> tuple[str, ...]:
        """Codings that round the checkpoint's values."""
        return tuple(dict.fromkeys(row.coding for row in self.weights if row.state == "rounded"))

    def count(self, state: WeightState) -> int:
        """Weights in a state."""
        return sum(row.state == state for row in self.weights)


@dataclass(frozen=True)
class PackageRecord:
    """Of a judged foreign package.

    Attributes:
        kind: ``optimum``, ``genai``, ``plain``, …
        graphs: Its files.
        settings: What its own settings say.
        offers: What was measured by running it.
        left_out: What it does not offer, for which cases were left out.
        audit: Its weights.
        cost: What rounding its weights costs, where they are rounded, in words; empty elsewhere.
    """

    kind: str
    graphs: tuple[str, ...]
    settings: dict[str, str]
    offers: tuple[Offer, ...]
    left_out: tuple[str, ...]
    audit: Audit
    cost: str = ""
