"""ONNX Runtime for JavaScript: Node's native binding."""

from __future__ import annotations

from collections.abc import Mapping

from exporter.bundle import Bundle
from runners.base import RunnerInfo
from runners.engines._node import describe_package, open_in_node
from runners.isolate import IsolatedSession

__all__ = ["INSTALL", "OWN_PROCESS", "describe", "open_session"]

INSTALL = "make engines ONLY=node"
TAKES = "the dynamic and static layouts"
OWN_PROCESS = True


def describe() -> RunnerInfo:
    """Version of onnxruntime-node."""
    return describe_package("onnxruntime_node", "onnxruntime-node", INSTALL)


def open_session(bundle: Bundle, options: Mapping[str, str]) -> IsolatedSession:
    """Open both graphs; settings ``threads``, ``level`` (none, basic, extended, all) and ``limit``."""
    return open_in_node("onnxruntime-node", describe(), bundle, options)
