"""onnx2torch: the graph as a PyTorch FX module, each node a module. It takes the bare profile only.

It knows neither comparisons nor reductions with axes as an input, which the portable profile needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from exporter.bundle import Bundle, GraphEntry
from runners.base import Array, RunnerInfo, need, only
from runners.engines._session import GraphSession, Run, by_name, refuse_profiles, threads_of
from runners.engines._torch import stand_in_for_torchvision

__all__ = ["INSTALL", "describe", "open_session"]

INSTALL = "pip install 'kvparity[onnx2torch]'"
TAKES = "the dynamic layout with --profile bare"


def describe() -> RunnerInfo:
    """Versions of onnx2torch and torch."""
    return RunnerInfo("onnx2torch", need("onnx2torch", INSTALL), {"torch": need("torch", INSTALL)})


def open_session(bundle: Bundle, options: Mapping[str, str]) -> GraphSession:
    """Convert both graphs; setting ``threads``."""
    only(options, "threads")
    info, threads = describe(), threads_of(options)
    refuse_profiles("onnx2torch", bundle, "bare")
    stand_in_for_torchvision()
    import onnx2torch
    import torch

    if threads:
        torch.set_num_threads(threads)

    def load(path: Path, entry: GraphEntry) -> Run:
        model = onnx2torch.convert(str(path)).eval()

        def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
            feeds = [torch.from_numpy(np.array(inputs[port.name])) for port in entry.spec.inputs]
            with torch.no_grad():
                return by_name(entry, [value.numpy() for value in model(*feeds)])

        return run

    settings = {**info.settings, "threads": str(torch.get_num_threads())}
    adapted = "each node became a torch module"
    return GraphSession(bundle, RunnerInfo("onnx2torch", info.version, settings, adapted), load)
