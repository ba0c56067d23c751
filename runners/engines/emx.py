"""The graph as C: emx-onnx-cgen writes it, gcc compiles it, and it is called like any C function.

Shapes are fixed, so it takes the static layout. Weights lie in a file beside the library.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kvparity.exporter.contract.bundle import Bundle, GraphEntry
from kvparity.exporter.contract.errors import EngineUnavailableError
from kvparity.exporter.contract.graph_file import load_whole_graph
from kvparity.runners.base import Array, RunnerInfo, need, only
from kvparity.runners.engines._cache import compiled
from kvparity.runners.engines._session import GraphSession, Run, empty, refuse_layouts

__all__ = ["INSTALL", "describe", "open_session"]

INSTALL = "pip install 'kvparity[emx]', and gcc"
TAKES = "the static layout"
_FLAGS = ["-O3", "-march=native", "-fno-math-errno", "-shared", "-fPIC"]


def describe() -> RunnerInfo:
    """Version of the code generator, and the C compiler."""
    return RunnerInfo("emx", need("emx-onnx-cgen", INSTALL), {"compiler": Path(_compiler()).name})


def open_session(bundle: Bundle, options: Mapping[str, str]) -> GraphSession:
    """Generate, compile and load both graphs; there are no settings."""
    only(options)
    info = describe()
    refuse_layouts("emx", bundle, "static")
    weights = [bundle.root / entry.path for entry in bundle.manifest.weights]

    def load(path: Path, entry: GraphEntry) -> Run:
        depends: list[Path | str] = [path, *weights, "emx", info.version, *_FLAGS]
        folder = compiled(depends, ".emx", lambda made: _compile(path, made))
        function = _load(folder)

        def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
            given = [np.ascontiguousarray(inputs[port.name]) for port in entry.spec.inputs]
            outputs = {port.name: empty(port) for port in entry.spec.outputs}
            function(*(ctypes.c_void_p(array.ctypes.data) for array in [*given, *outputs.values()]))
            return outputs

        return run

    settings = {**info.settings, "flags": " ".join(_FLAGS[:3])}
    return GraphSession(bundle, RunnerInfo("emx", info.version, settings, "compiled from C, weights beside it"), load)


def _compile(path: Path, folder: Path) -> None:
    import onnx

    folder.mkdir()
    whole, source = folder / "model.onnx", folder / "model.c"
    onnx.save(load_whole_graph(path), str(whole))  # its own reader refuses external data
    _tool(
        [
            str(Path(sys.executable).parent / "emx-onnx-cgen"),
            "compile",
            "--model-name",
            "model",
            str(whole),
            str(source),
        ]
    )
    _tool([_compiler(), *_FLAGS, "-o", str(folder / "model.so"), str(source), "-lm"])
    for used in (whole, source):
        os.unlink(used)


def _load(folder: Path) -> ctypes._NamedFuncPointer:
    library = ctypes.CDLL(str(folder / "model.so"))
    library.model_load.restype = ctypes.c_bool
    if not library.model_load(str(folder / "model.bin").encode()):
        raise EngineUnavailableError("emx: the compiled graph cannot read its weights")
    library.model.restype = None
    return library.model


def _tool(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        last = (result.stderr or result.stdout).strip().splitlines()[-1:]
        raise EngineUnavailableError(f"{Path(command[0]).name} failed: {''.join(last)[:300]}")


def _compiler() -> str:
    """The C compiler to use.

    Raises:
        EngineUnavailableError: There is none.
    """
    found = shutil.which("gcc") or shutil.which("cc")
    if found is None:
        raise EngineUnavailableError(f"gcc is not installed; {INSTALL}")
    return found
