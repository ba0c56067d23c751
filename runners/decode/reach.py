"""How far back a conversation may go: sliding slots drop rows, and what was dropped can't be seen again."""

from __future__ import annotations

from kvparity.exporter.contract.cases import Step
from kvparity.exporter.contract.errors import TraceError
from kvparity.exporter.contract.spec import ExportOptions, ModelSpec

__all__ = ["check_reach"]


def check_reach(model: ModelSpec, options: ExportOptions, step: Step) -> None:
    """Refuse a step whose past lacks rows.

    Raises:
        TraceError: The step goes back further than the caches reach.
    """
    if step.start and not options.reaches(model, step.start, step.reached):
        raise TraceError(
            f"step {step.index} goes back from {step.reached} tokens to {step.start}, and sliding caches of window "
            f"{model.window} keep {options.rewind} tokens more than that; export with --rewind "
            f"{step.reached - step.start}, or keep the caches of before the call (docs/caches.md)"
        )
