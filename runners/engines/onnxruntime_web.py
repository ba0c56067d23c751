"""ONNX Runtime for JavaScript: WebAssembly in Node, and WebAssembly or WebGPU on a page in a headless Chromium."""

from __future__ import annotations

from collections.abc import Mapping

from kvparity.exporter.contract.bundle import Bundle
from kvparity.runners.base import RunnerInfo, only
from kvparity.runners.engines._node import INSTALL, describe_package, open_in_chromium, open_in_node
from kvparity.runners.engines._session import one_of, refuse_layouts
from kvparity.runners.isolation.process import IsolatedSession

__all__ = ["INSTALL", "OWN_PROCESS", "describe", "open_session"]

TAKES = "the dynamic and static layouts"
OWN_PROCESS = True


def describe() -> RunnerInfo:
    """Version of onnxruntime-web."""
    return describe_package("onnxruntime_web", "onnxruntime-web")


def open_session(bundle: Bundle, options: Mapping[str, str]) -> IsolatedSession:
    """Open both graphs.

    Settings: ``provider`` (wasm; webgpu, in Chromium), ``host`` (node, chromium), ``threads``, ``level`` (none, basic,
    extended, all) and ``limit``. The GPU is the one that the browser takes, a software one where it has no other, and
    is reported as ``adapter``.
    """
    only(options, "provider", "host", "threads", "level", "limit")
    info = describe()
    refuse_layouts(info.name, bundle, "dynamic", "static")
    provider = one_of(info.name, options, "provider", "wasm", "webgpu")
    host = one_of(info.name, options, "host", *(("chromium",) if provider == "webgpu" else ("node", "chromium")))
    given = {key: value for key, value in options.items() if key != "host"} | {"provider": provider}
    if host == "chromium":
        return open_in_chromium(info, bundle, given)
    return open_in_node("onnxruntime-web", info, bundle, given)
