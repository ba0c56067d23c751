"""MNN, Alibaba's engine: graphs are converted to its own format; integers are int32.

The converter is called directly: the package's own ``mnnconvert`` script installs packages and reports usage.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kvparity.exporter.contract.bundle import Bundle, GraphEntry
from kvparity.exporter.contract.errors import EngineUnavailableError
from kvparity.exporter.contract.spec import Port
from kvparity.runners.base import Array, RunnerInfo, need, only
from kvparity.runners.engines._cache import compiled
from kvparity.runners.engines._session import GraphSession, Run, by_name, one_of, threads_of

__all__ = ["INSTALL", "describe", "open_session"]

INSTALL = "pip install 'kvparity[mnn]'"
TAKES = "the dynamic and static layouts"


def describe() -> RunnerInfo:
    """Version of MNN."""
    return RunnerInfo("mnn", need("MNN", INSTALL))


def open_session(bundle: Bundle, options: Mapping[str, str]) -> GraphSession:
    """Convert and load both graphs; settings ``precision`` (high, normal, low) and ``threads``."""
    only(options, "precision", "threads")
    version = describe().version
    precision, threads = one_of("mnn", options, "precision", "high", "normal", "low"), threads_of(options) or 1
    import MNN

    runtime = MNN.nn.create_runtime_manager(({"backend": "CPU", "precision": precision, "numThread": threads},))
    weights = [bundle.root / entry.path for entry in bundle.manifest.weights]

    def load(path: Path, entry: GraphEntry) -> Run:
        model = compiled([path, *weights, "mnn", version], ".mnn", lambda made: _convert(path, made))
        inputs, outputs = [port.name for port in entry.spec.inputs], [port.name for port in entry.spec.outputs]
        module = MNN.nn.load_module_from_file(str(model), inputs, outputs, runtime_manager=runtime)

        def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
            results = module.onForward([_variable(MNN.expr, port, feeds[port.name]) for port in entry.spec.inputs])
            return by_name(entry, [np.array(result.read()).reshape(result.shape) for result in results])

        return run

    settings = {"precision": precision, "threads": str(threads)}
    info = RunnerInfo("mnn", version, settings, "converted to MNN's format, integers as int32")
    return GraphSession(bundle, info, load)


def _convert(path: Path, made: Path) -> None:
    import _tools

    words = ["mnnconvert", "-f", "ONNX", "--modelFile", path, "--MNNModel", made, "--bizCode", "kvparity"]
    with contextlib.chdir(made.parent):  # it leaves files where it runs
        _tools.mnnconvert([str(word) for word in [*words, "--keepInputFormat", "1"]])
    if not made.exists():
        raise EngineUnavailableError(f"mnnconvert made nothing of {path.name}, and says no more")


def _variable(expr: Any, port: Port, value: Array) -> Any:
    integer = port.dtype == "int64"
    array = np.ascontiguousarray(value, np.int32 if integer else np.float32)
    return expr.const(array, list(array.shape), expr.NCHW, expr.int if integer else expr.float)
