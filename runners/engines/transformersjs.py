"""transformers.js under Node: its model class loads decode.onnx, makes first caches and positions, and keeps caches.

What it loads is the folder that ``cli.py package --to transformersjs`` writes, its weights a link.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.files import link_file, scratch_folder
from kvparity.exporter.contract.packages import transformersjs as package
from kvparity.runners.base import RunnerInfo, only
from kvparity.runners.engines._node import INSTALL, describe_package, open_in_node
from kvparity.runners.engines._session import refuse_unpacked
from kvparity.runners.isolation.process import IsolatedSession

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
    refuse_unpacked(package.refuse, bundle)
    folder = scratch_folder("kvparity-transformersjs-")
    package.write(bundle, Path(folder.name), link_file, options.get("type", package.TYPE))
    settings = {key: value for key, value in options.items() if key != "type"}
    packed = Bundle(Path(folder.name), bundle.manifest)
    return open_in_node("@huggingface/transformers", info, packed, settings, folder)
