"""transformers and torch without their advice: what they log is about choices that a user of ours does not have."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet_libraries"]

# the first logs the traceback of an error that is raised anyway, the second asks for packages that are not needed
_TORCH = ("torch._subclasses.fake_tensor", "torch.onnx._internal.exporter._registration")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No progress bars, and of what transformers and torch log errors of theirs alone, while the block runs."""
    from transformers.utils import logging as advice

    level, bars = advice.get_verbosity(), advice.is_progress_bar_enabled()
    loggers = {logging.getLogger(name): logging.getLogger(name).level for name in _TORCH}
    advice.set_verbosity_error()
    advice.disable_progress_bar()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        advice.set_verbosity(level)
        if bars:
            advice.enable_progress_bar()
        for logger, before in loggers.items():
            logger.setLevel(before)
