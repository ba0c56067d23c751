"""ONNX Runtime for JavaScript: Node's native binding."""

from __future__ import annotations

from collections.abc import Mapping

from kvparity.exporter.contract.bundle import Bundle
from kvparity.runners.base import RunnerInfo, only
from kvparity.runners.engines._node import INSTALL, describe_package, open_in_node
from kvparity.runners.engines._session import refuse_layouts
from kvparity.runners.isolation.process import IsolatedSession

__all__ = ["INSTALL", "OWN_PROCESS", "describe", "open_session"]

TAKES = "the dynamic and static layouts"
OWN_PROCESS = True


def describe() -> RunnerInfo:
    """Version of onnxruntime-node."""
    return describe_package("onnxruntime_node", "onnxruntime-node")


def open_session(bundle: Bundle, options: Mapping[str, str]) -> IsolatedSession:
    """Open both graphs; settings ``threads``, ``level`` (none, basic, extended, all) and ``limit``."""
    only(options, "threads", "level", "limit")
    info = describe()
    refuse_layouts(info.name, bundle, "dynamic", "static")
    return open_in_node("onnxruntime-node", info, bundle, options)
