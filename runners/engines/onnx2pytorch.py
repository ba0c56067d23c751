"""onnx2pytorch: the graph as a PyTorch module, each node one torch call. Inputs are positional."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.graph_file import load_whole_graph
from kvparity.runners.base import RunnerInfo, need, only
from kvparity.runners.engines._session import GraphSession, threads_of
from kvparity.runners.engines._torch import converted_session, stand_in_for_torchvision

__all__ = ["INSTALL", "describe", "open_session"]

INSTALL = "pip install 'kvparity[onnx2pytorch]'"
TAKES = "the dynamic layout"


def describe() -> RunnerInfo:
    """Versions of onnx2pytorch and torch."""
    return RunnerInfo("onnx2pytorch", need("onnx2pytorch", INSTALL), {"torch": need("torch", INSTALL)})


def open_session(bundle: Bundle, options: Mapping[str, str]) -> GraphSession:
    """Convert both graphs; setting ``threads``."""
    only(options, "threads")
    info, threads = describe(), threads_of(options)
    stand_in_for_torchvision()
    from onnx2pytorch import ConvertModel

    def convert(path: Path) -> Any:
        return ConvertModel(load_whole_graph(path))

    return converted_session(bundle, info, threads, convert, "each node became a torch call")
