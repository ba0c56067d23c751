"""onnx's ReferenceEvaluator: the ONNX specification in numpy; slow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kvparity.exporter.contract.bundle import Bundle, GraphEntry
from kvparity.exporter.contract.graph_file import load_whole_graph
from kvparity.runners.base import RunnerInfo, need, only
from kvparity.runners.engines._session import GraphSession, Run, run_by_name

__all__ = ["INSTALL", "describe", "open_session"]

INSTALL = "pip install onnx"
TAKES = "the dynamic and static layouts"


def describe() -> RunnerInfo:
    """Version of onnx."""
    return RunnerInfo("onnx_reference", need("onnx", INSTALL))


def open_session(bundle: Bundle, options: Mapping[str, str]) -> GraphSession:
    """Load both graphs; there are no settings."""
    only(options)
    info = describe()
    from onnx.reference import ReferenceEvaluator

    def load(path: Path, entry: GraphEntry) -> Run:
        return run_by_name(ReferenceEvaluator(load_whole_graph(path)), entry)

    return GraphSession(bundle, info, load)
