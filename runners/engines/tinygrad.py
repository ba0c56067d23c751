"""tinygrad on the CPU, through clang. Shapes are fixed, so it takes the static layout."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kvparity.exporter.contract.bundle import Bundle, GraphEntry
from kvparity.exporter.contract.errors import EngineUnavailableError
from kvparity.runners.base import Array, RunnerInfo, need, only
from kvparity.runners.engines._session import GraphSession, Run, empty, refuse_layouts

__all__ = ["INSTALL", "describe", "open_session"]

INSTALL = "pip install 'kvparity[tinygrad]', and clang"
TAKES = "the static layout"


def describe() -> RunnerInfo:
    """Version of tinygrad."""
    return RunnerInfo("tinygrad", need("tinygrad", INSTALL), {"compiler": Path(_clang()).name})


def open_session(bundle: Bundle, options: Mapping[str, str]) -> GraphSession:
    """Load both graphs and compile their kernels, minutes the first time; there are no settings."""
    only(options)
    info = describe()
    refuse_layouts("tinygrad", bundle, "static")
    os.environ.update(DEV="CPU", CC=_clang())
    from tinygrad import Tensor, TinyJit
    from tinygrad.nn.onnx import OnnxRunner

    def load(path: Path, entry: GraphEntry) -> Run:
        runner = OnnxRunner(str(path))
        names = [port.name for port in entry.spec.inputs]
        outputs = [port.name for port in entry.spec.outputs]

        @TinyJit  # type: ignore[untyped-decorator,unused-ignore]
        def call(*tensors: Tensor) -> list[Tensor]:
            results = runner(dict(zip(names, tensors, strict=True)))
            return [results[name].contiguous().realize() for name in outputs]

        def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
            tensors = [Tensor(np.ascontiguousarray(inputs[name])).realize() for name in names]
            return {name: np.array(value.numpy()) for name, value in zip(outputs, call(*tensors), strict=True)}

        blank = {port.name: empty(port) for port in entry.spec.inputs}
        for _ in range(2):  # the first call compiles, the second records
            run(blank)
        return run

    settings = {"device": "CPU", **info.settings}
    return GraphSession(bundle, RunnerInfo("tinygrad", info.version, settings), load)


def _clang() -> str:
    """The clang to use: ``CC``, or the newest one found.

    Raises:
        EngineUnavailableError: There is none.
    """
    names = [os.environ.get("CC", ""), "clang", *(f"clang-{version}" for version in range(25, 12, -1))]
    found = next((path for path in map(shutil.which, filter(None, names)) if path and "clang" in path), None)
    if found is None:
        raise EngineUnavailableError(f"clang is not installed, and tinygrad compiles with it; {INSTALL}")
    return found
