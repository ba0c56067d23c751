"""Runs one module of ours in a process whose path is its own: ``python kvparity/start.py MODULE ARGUMENT…``.

Started by its path, so that neither this folder nor its parent is searched: where kvparity is installed, the parent is
a site-packages folder, and its numpy and onnx would hide those of an engine's environment. Standard library only, for
any Python that an engine needs.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import sys
from pathlib import Path

__all__ = ["command"]


def command(module: str, *arguments: str, python: str = sys.executable) -> list[str]:
    """The words that run ``main(*arguments)`` of a module of ours under an interpreter."""
    return [python, str(Path(__file__).resolve()), module, *arguments]


def _register(folder: Path) -> None:
    """Make ``kvparity`` importable from a folder without searching what lies beside it."""
    spec = importlib.util.spec_from_file_location(
        "kvparity", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["kvparity"] = package
    spec.loader.exec_module(package)


if __name__ == "__main__":
    own = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != own]
    gc.disable()  # imports make half a million objects that stay; looking for garbage among them takes a second
    _register(own)
    main = importlib.import_module(sys.argv[1]).main
    gc.enable()
    sys.exit(main(*sys.argv[2:]))
