"""Apache TVM's Relax, compiled for LLVM and not tuned. Shapes are fixed, so it takes the static layout."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kvparity.exporter.contract.bundle import Bundle, GraphEntry
from kvparity.exporter.contract.graph_file import load_whole_graph
from kvparity.runners.base import Array, RunnerInfo, need, only
from kvparity.runners.engines._cache import compiled
from kvparity.runners.engines._session import GraphSession, Run, by_name, refuse_layouts, threads_of

__all__ = ["INSTALL", "describe", "open_session"]

INSTALL = "pip install 'kvparity[tvm]'"
TAKES = "the static layout"


def describe() -> RunnerInfo:
    """Version of TVM."""
    return RunnerInfo("tvm", need("apache-tvm", INSTALL))


def open_session(bundle: Bundle, options: Mapping[str, str]) -> GraphSession:
    """Compile both graphs; a minute the first time. Setting ``threads``."""
    only(options, "threads")
    version, threads = describe().version, threads_of(options) or 1
    refuse_layouts("tvm", bundle, "static")
    os.environ["TVM_NUM_THREADS"] = str(threads)
    weights = [bundle.root / entry.path for entry in bundle.manifest.weights]
    import tvm

    def load(path: Path, entry: GraphEntry) -> Run:
        library = compiled([path, *weights, "tvm", version], ".so", lambda made: _compile(tvm, path, made))
        machine = tvm.relax.VirtualMachine(tvm.runtime.load_module(str(library)), tvm.cpu())

        def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
            feeds = [tvm.runtime.tensor(np.ascontiguousarray(inputs[port.name])) for port in entry.spec.inputs]
            return by_name(entry, [value.numpy() for value in machine["main"](*feeds)])

        return run

    settings = {"target": "llvm", "threads": str(threads)}
    return GraphSession(bundle, RunnerInfo("tvm", version, settings, "compiled to a library, weights inside"), load)


def _compile(tvm: Any, path: Path, made: Path) -> None:
    from tvm.relax.frontend.onnx import from_onnx

    module = from_onnx(load_whole_graph(path), keep_params_in_input=False)
    tvm.compile(module, tvm.target.Target("llvm")).export_library(str(made))
