"""Observed error pattern -> likely cause. A rule speaks only where its pattern fits the numbers exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from exporter.spec import ModelSpec
from runners.locate import cause_attention, cause_masks, cause_values
from runners.locate.operators import Inspection
from runners.locate.probe_diff import Array, Call, ProbeDiff

__all__ = ["Cause", "Evidence", "likely_cause"]

Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Cause:
    """A likely cause: a short name for programs, a sentence for people."""

    name: str
    sentence: str


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything that a rule may look at.

    Attributes:
        model: The model.
        call: The call.
        diff: The guilty probe, computed from right inputs.
        reference: What every probe should be.
        inspection: The guilty segment from inside; None where it was not opened.
    """

    model: ModelSpec
    call: Call
    diff: ProbeDiff
    reference: Mapping[str, Array]
    inspection: Inspection | None = None


Rule = Callable[[Evidence], tuple[str, str] | None]
_RULES: tuple[Rule, ...] = (
    cause_masks.wrong_mask,
    cause_values.wrong_rows,
    cause_values.rotary_tables,
    cause_values.wrong_weight,
    cause_values.shifted_rows,
    cause_values.other_value,
    cause_values.constant_factor,
    cause_values.half_precision,
    cause_values.cast_away,
    cause_values.gelu_variant,
    cause_values.unrotated,
    cause_values.permuted_heads,
    cause_values.norm_factor,
    cause_attention.wrong_attention,
    cause_values.few_channels,
    cause_values.few_tokens,
    cause_masks.window_from_position,
    cause_values.growing,
)


def likely_cause(evidence: Evidence) -> Cause | None:
    """The first rule whose pattern fits, most specific first; None where none does."""
    for rule in _RULES:
        found = rule(evidence)
        if found is not None:
            return Cause(*found)
    return None
