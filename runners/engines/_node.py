"""Opens a session in a JavaScript package: the engine's process is ``_js/node.mjs`` or a browser."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.errors import EngineUnavailableError
from kvparity.runners.base import RunnerInfo
from kvparity.runners.engines._chromium import chromium
from kvparity.runners.engines._session import one_of
from kvparity.runners.isolation.process import IsolatedSession, Launch, engines_folder, limit_of
from kvparity.start import command

__all__ = ["INSTALL", "describe_package", "open_in_chromium", "open_in_node"]

Folder = TemporaryDirectory[str]
HOST = Path(__file__).with_name("_js") / "node.mjs"
INSTALL = "make engines ONLY=node"
_LEVELS = ("all", "none", "basic", "extended")


def describe_package(name: str, package: str) -> RunnerInfo:
    """Version of an npm package.

    Raises:
        EngineUnavailableError: Node or the package is not installed.
    """
    node = shutil.which("node")
    if node is None:
        raise EngineUnavailableError(f"node is not installed; {INSTALL}")
    manifest = home() / "node_modules" / package / "package.json"
    if not manifest.is_file():
        raise EngineUnavailableError(f"the npm package {package} is not installed; {INSTALL}")
    return RunnerInfo(name, str(json.loads(manifest.read_text(encoding="utf-8"))["version"]))


def home() -> Path:
    """The folder that has ``node_modules``: ``KVPARITY_NODE``, or ``node`` among the engine environments."""
    return Path(os.environ.get("KVPARITY_NODE") or engines_folder() / "node").resolve()


def open_in_node(
    package: str, info: RunnerInfo, bundle: Bundle, options: Mapping[str, str], folder: Folder | None = None
) -> IsolatedSession:
    """Open a bundle in a package under Node; a temporary folder that it was put into goes when the session closes.

    Raises:
        EngineUnavailableError: A setting makes no sense, or the package cannot load a graph.
    """
    return _open([str(shutil.which("node")), str(HOST), package, str(home())], info, bundle, options, folder)


def open_in_chromium(info: RunnerInfo, bundle: Bundle, options: Mapping[str, str]) -> IsolatedSession:
    """Open a bundle in onnxruntime-web on a page of ours in a headless Chromium.

    Raises:
        EngineUnavailableError: There is no Chromium, or it gives no GPU, not even one in software.
    """
    chromium()
    flags = ["--enable-unsafe-webgpu"] if options["provider"] == "webgpu" else ["--disable-gpu"]
    words = command("kvparity.runners.engines._chromium", str(home() / "node_modules"), *flags)
    return _open(words, info, bundle, options)


def _open(
    words: list[str], info: RunnerInfo, bundle: Bundle, options: Mapping[str, str], folder: Folder | None = None
) -> IsolatedSession:
    one_of(info.name, options, "level", *_LEVELS)
    launch = Launch(info.name, words, limit_of(info.name, options))
    return IsolatedSession(bundle, launch, {key: value for key, value in options.items() if key != "limit"}, folder)
