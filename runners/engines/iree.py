"""IREE: the graph becomes MLIR, the compiler makes a module of it, its runtime runs that. Inputs are positional."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kvparity.exporter.contract.bundle import Bundle, GraphEntry
from kvparity.exporter.contract.errors import EngineUnavailableError
from kvparity.runners.base import Array, RunnerInfo, need, only
from kvparity.runners.engines._cache import compiled
from kvparity.runners.engines._session import GraphSession, Run, by_name

__all__ = ["INSTALL", "describe", "open_session"]

INSTALL = "pip install 'kvparity[iree]'"
TAKES = "the dynamic layout"
_FLAGS = ["--iree-hal-target-backends=llvm-cpu", "--iree-llvmcpu-target-cpu=host"]


def describe() -> RunnerInfo:
    """Versions of IREE's compiler and runtime."""
    return RunnerInfo("iree", need("iree-base-runtime", INSTALL), {"compiler": need("iree-base-compiler", INSTALL)})


def open_session(bundle: Bundle, options: Mapping[str, str]) -> GraphSession:
    """Compile both graphs with dynamic sizes; a minute or two the first time. There are no settings."""
    only(options)
    info = describe()
    weights = [bundle.root / entry.path for entry in bundle.manifest.weights]

    def load(path: Path, entry: GraphEntry) -> Run:
        depends: list[Path | str] = [path, *weights, "iree", info.version, info.settings["compiler"], *_FLAGS]
        module = compiled(depends, ".vmfb", lambda made: _compile(path, made))
        function = _function(module)

        def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
            results = function(*(np.ascontiguousarray(inputs[port.name]) for port in entry.spec.inputs))
            return by_name(entry, [np.asarray(value) for value in results])

        return run

    settings = {"backend": "llvm-cpu", "driver": "local-sync", **info.settings}
    return GraphSession(
        bundle, RunnerInfo("iree", info.version, settings, "compiled to a module, weights inside"), load
    )


def _compile(path: Path, made: Path) -> None:
    tools = Path(sys.executable).parent
    mlir = made.with_suffix(".mlir")
    _tool([tools / "iree-import-onnx", path, "-o", mlir])
    _tool([tools / "iree-compile", mlir, "-o", made, *_FLAGS])


def _tool(command: list[Path | str]) -> None:
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if result.returncode:
        said = next((line for line in result.stderr.splitlines() if "error" in line.lower()), result.stderr[-300:])
        raise EngineUnavailableError(f"{Path(command[0]).name} failed: {said.split('error:')[-1].strip()[:300]}")


def _function(path: Path) -> Any:
    import iree.runtime as runtime

    context = runtime.SystemContext(config=runtime.Config("local-sync"))
    module = runtime.VmModule.mmap(context.instance, str(path))
    context.add_vm_module(module)
    names = [name for name in module.function_names if not name.startswith("__") and not name.endswith("$async")]
    return context.modules[module.name][names[0]]
