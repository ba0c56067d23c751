"""onnx2pytorch: the graph as a PyTorch module, each node one torch call. Inputs are positional."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from exporter.bundle import Bundle, GraphEntry
from runners.base import Array, RunnerInfo, need, only
from runners.engines._session import GraphSession, Run, by_name, threads_of
from runners.engines._torch import stand_in_for_torchvision

__all__ = ["INSTALL", "describe", "open_session"]

INSTALL = "pip install 'kvparity[onnx2pytorch]'"
TAKES = "the dynamic layout"


def describe() -> RunnerInfo:
    """Versions of onnx2pytorch and torch."""
    return RunnerInfo("onnx2pytorch", need("onnx2pytorch", INSTALL), {"torch": need("torch", INSTALL)})


def open_session(bundle: Bundle, options: Mapping[str, str]) -> GraphSession:
    """Convert both graphs; setting ``threads``."""
    only(options, "threads")
    info, threads = describe(), threads_of(options)
    stand_in_for_torchvision()
    import onnx
    import torch
    from onnx2pytorch import ConvertModel

    if threads:
        torch.set_num_threads(threads)

    def load(path: Path, entry: GraphEntry) -> Run:
        model = ConvertModel(onnx.load(str(path))).eval()

        def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
            feeds = [torch.from_numpy(np.array(inputs[port.name])) for port in entry.spec.inputs]
            with torch.no_grad():
                return by_name(entry, [value.numpy() for value in model(*feeds)])

        return run

    settings = {**info.settings, "threads": str(torch.get_num_threads())}
    adapted = "each node became a torch call"
    return GraphSession(bundle, RunnerInfo("onnx2pytorch", info.version, settings, adapted), load)
