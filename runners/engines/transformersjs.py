"""transformers.js under Node: its model class loads decode.onnx, makes first caches and positions, and keeps caches.

It looks for ``onnx/model.onnx`` and a ``config.json`` of a model type that it knows: links and a config in a folder of
its own, no edit of a graph.
"""

from __future__ import annotations

from collections.abc import Mapping

from exporter.bundle import Bundle
from runners.base import RunnerInfo, only
from runners.engines._node import INSTALL, describe_package, open_in_node
from runners.engines._session import refuse_layouts
from runners.isolate import IsolatedSession

__all__ = ["INSTALL", "OWN_PROCESS", "describe", "open_session"]

TAKES = "the dynamic layout"
OWN_PROCESS = True


def describe() -> RunnerInfo:
    """Version of @huggingface/transformers."""
    return describe_package("transformersjs", "@huggingface/transformers")


def open_session(bundle: Bundle, options: Mapping[str, str]) -> IsolatedSession:
    """Load decode.onnx; settings ``type`` (llama: the model type it is told), ``threads``, ``level`` and ``limit``."""
    only(options, "type", "threads", "level", "limit")
    info = describe()
    refuse_layouts(info.name, bundle, "dynamic")
    return open_in_node("@huggingface/transformers", info, bundle, options)
