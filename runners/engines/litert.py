"""LiteRT (TensorFlow Lite), through Google's litert-torch: the graph becomes torch calls, and those a .tflite file.

Shapes are fixed, so it takes the static layout. The other way in, onnx2tf, does not get through it (docs/engines.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kvparity.exporter.contract.bundle import Bundle, GraphEntry
from kvparity.runners.base import Array, RunnerInfo, need, only
from kvparity.runners.engines._cache import compiled
from kvparity.runners.engines._session import GraphSession, Run, by_name, refuse_layouts, threads_of
from kvparity.runners.engines._torch import torch_module

__all__ = ["INSTALL", "describe", "open_session"]

INSTALL = "pip install 'kvparity[litert]'"
TAKES = "the static layout"


def describe() -> RunnerInfo:
    """Versions of LiteRT and of its converter."""
    version = need("ai-edge-litert", INSTALL)
    return RunnerInfo("litert", version, {"litert-torch": need("litert-torch", INSTALL)})


def open_session(bundle: Bundle, options: Mapping[str, str]) -> GraphSession:
    """Convert and load both graphs, half a minute the first time; setting ``threads``."""
    only(options, "threads")
    info, threads = describe(), threads_of(options) or 1
    refuse_layouts("litert", bundle, "static")
    weights = [bundle.root / entry.path for entry in bundle.manifest.weights]
    depends: list[Path | str] = [*weights, "litert", info.version, info.settings["litert-torch"]]

    def load(path: Path, entry: GraphEntry) -> Run:
        from ai_edge_litert.interpreter import Interpreter

        model = compiled([path, *depends], ".tflite", lambda made: _convert(path, entry, made))
        runner = Interpreter(str(model), num_threads=threads).get_signature_runner()
        dtypes = [runner.get_input_details()[f"args_{i}"]["dtype"] for i in range(len(entry.spec.inputs))]

        def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
            feeds = {
                f"args_{i}": np.ascontiguousarray(inputs[port.name], dtype)
                for i, (port, dtype) in enumerate(zip(entry.spec.inputs, dtypes, strict=True))
            }
            results = runner(**feeds)
            return by_name(entry, [results[f"output_{i}"] for i in range(len(results))])

        return run

    settings = {**info.settings, "threads": str(threads)}
    adapted = "translated to torch, converted to .tflite; integers as int32"
    return GraphSession(bundle, RunnerInfo("litert", info.version, settings, adapted), load)


def _convert(path: Path, entry: GraphEntry, made: Path) -> None:
    import litert_torch
    import torch

    blank = tuple(torch.zeros(port.shape, dtype=getattr(torch, port.dtype)) for port in entry.spec.inputs)
    litert_torch.convert(torch_module(path), blank).export(str(made))
