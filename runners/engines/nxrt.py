"""nxrt, an independent ONNX runtime in Rust with ONNX Runtime's Python interface."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kvparity.exporter.contract.bundle import Bundle, GraphEntry
from kvparity.runners.base import RunnerInfo, need, only
from kvparity.runners.engines._session import GraphSession, Run, run_by_name

__all__ = ["INSTALL", "describe", "open_session"]

INSTALL = "pip install 'kvparity[nxrt]'"
TAKES = "the dynamic and static layouts"


def describe() -> RunnerInfo:
    """Version of nxrt."""
    return RunnerInfo("nxrt", need("nxrt", INSTALL))


def open_session(bundle: Bundle, options: Mapping[str, str]) -> GraphSession:
    """Load both graphs; there are no settings."""
    only(options)
    info = describe()
    import nxrt

    def load(path: Path, entry: GraphEntry) -> Run:
        return run_by_name(nxrt.InferenceSession(str(path)), entry)

    return GraphSession(bundle, info, load)
