"""onnx2torch: the graph as a PyTorch FX module, each node a module. It takes the bare profile only.

It knows neither comparisons nor reductions with axes as an input, which the portable profile needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvparity.exporter.contract.bundle import Bundle
from kvparity.runners.base import RunnerInfo, need, only
from kvparity.runners.engines._session import GraphSession, refuse_profiles, threads_of
from kvparity.runners.engines._torch import converted_session, stand_in_for_torchvision

__all__ = ["INSTALL", "describe", "open_session"]

INSTALL = "pip install 'kvparity[onnx2torch]'"
TAKES = "the dynamic layout with --profile bare"


def describe() -> RunnerInfo:
    """Versions of onnx2torch and torch."""
    return RunnerInfo("onnx2torch", need("onnx2torch", INSTALL), {"torch": need("torch", INSTALL)})


def open_session(bundle: Bundle, options: Mapping[str, str]) -> GraphSession:
    """Convert both graphs; setting ``threads``."""
    only(options, "threads")
    info, threads = describe(), threads_of(options)
    refuse_profiles("onnx2torch", bundle, "bare")
    stand_in_for_torchvision()
    import onnx2torch

    def convert(path: Path) -> Any:
        return onnx2torch.convert(str(path))

    return converted_session(bundle, info, threads, convert, "each node became a torch module")
