"""Opens a session in Node: the engine's process is ``_host.cjs``, which knows no Python."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from exporter.bundle import Bundle
from exporter.errors import EngineUnavailableError
from runners.base import RunnerInfo, only
from runners.engines._session import refuse_layouts
from runners.isolate import IsolatedSession, Launch, engines_folder, limit_of

__all__ = ["describe_package", "open_in_node"]

HOST = Path(__file__).with_name("_host.cjs")


def describe_package(name: str, package: str, install: str) -> RunnerInfo:
    """Version of an npm package.

    Raises:
        EngineUnavailableError: Node or the package is not installed.
    """
    node = shutil.which("node")
    if node is None:
        raise EngineUnavailableError(f"node is not installed; {install}")
    manifest = home() / "node_modules" / package / "package.json"
    if not manifest.is_file():
        raise EngineUnavailableError(f"the npm package {package} is not installed; {install}")
    return RunnerInfo(name, str(json.loads(manifest.read_text(encoding="utf-8"))["version"]))


def home() -> Path:
    """The folder that has ``node_modules``: ``KVPARITY_NODE``, or ``node`` among the engine environments."""
    return Path(os.environ.get("KVPARITY_NODE") or engines_folder() / "node")


def open_in_node(package: str, info: RunnerInfo, bundle: Bundle, options: Mapping[str, str]) -> IsolatedSession:
    """Open both graphs; settings ``threads`` (1), ``level`` (none, basic, extended, all) and ``limit``.

    Raises:
        EngineUnavailableError: A setting makes no sense, or the package cannot load a graph.
    """
    only(options, "threads", "level", "limit")
    refuse_layouts(info.name, bundle, "dynamic", "static")
    if options.get("level", "all") not in ("none", "basic", "extended", "all"):
        raise EngineUnavailableError(f"{info.name}: level {options['level']!r} is unknown")
    command = [str(shutil.which("node")), str(HOST), package, str(home().resolve())]
    launch = Launch(info.name, command, limit_of(info.name, options))
    return IsolatedSession(bundle, launch, {key: value for key, value in options.items() if key != "limit"})
