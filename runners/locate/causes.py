"""Likely causes: an error's pattern in, a cause in words out where it fits the numbers exactly."""

from __future__ import annotations

from collections.abc import Callable

from kvparity.runners.locate import (
    cause_attention,
    cause_caches,
    cause_inputs,
    cause_masks,
    cause_rotation,
    cause_values,
)
from kvparity.runners.locate.evidence import Cause, Evidence, Said

__all__ = ["Cause", "Evidence", "likely_cause"]

Rule = Callable[[Evidence], Said]
_RULES: tuple[Rule, ...] = (
    cause_masks.wrong_mask,
    cause_caches.wrong_rows,
    cause_rotation.rotary_tables,
    cause_values.wrong_weight,
    cause_caches.shifted_rows,
    cause_values.other_value,
    cause_values.constant_factor,
    cause_values.half_precision,
    cause_values.cast_away,
    cause_values.gelu_variant,
    cause_rotation.unrotated,
    cause_rotation.rotated,
    cause_values.permuted_heads,
    cause_values.norm_factor,
    cause_attention.wrong_attention,
    cause_inputs.activation,
    cause_inputs.softcap,
    cause_inputs.scaled_input,
    cause_inputs.other_inputs,
    cause_inputs.shifted_tokens,
    cause_values.few_channels,
    cause_values.few_tokens,
    cause_masks.window_from_position,
    cause_rotation.same_length,
    cause_rotation.growing,
)


def likely_cause(evidence: Evidence) -> Cause | None:
    """The first rule whose pattern fits, most specific first; None where none does."""
    for rule in _RULES:
        found = rule(evidence)
        if found is not None:
            return Cause(*found)
    return None
