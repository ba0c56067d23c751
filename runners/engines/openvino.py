"""OpenVINO on the CPU.

Its default precision is bfloat16 on CPUs that have it, without a word: logits of a small model move by 0.1 and the
best token changes. So this runner asks for float32; ``precision=default`` leaves the choice to OpenVINO.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kvparity.exporter.contract.bundle import Bundle, GraphEntry
from kvparity.runners.base import Array, RunnerInfo, need, only
from kvparity.runners.engines._session import GraphSession, Run, one_of, threads_of

__all__ = ["INSTALL", "describe", "open_session"]

INSTALL = "pip install 'kvparity[openvino]'"
TAKES = "the dynamic and static layouts"


def describe() -> RunnerInfo:
    """Version of OpenVINO."""
    return RunnerInfo("openvino", need("openvino", INSTALL))


def open_session(bundle: Bundle, options: Mapping[str, str]) -> GraphSession:
    """Compile both graphs; settings ``precision`` (f32, bf16, f16, default) and ``threads``."""
    only(options, "precision", "threads")
    version = describe().version
    precision, threads = one_of("openvino", options, "precision", "f32", "bf16", "f16", "default"), threads_of(options)
    import openvino

    core = openvino.Core()
    config: dict[str, Any] = {} if precision == "default" else {"INFERENCE_PRECISION_HINT": precision}
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads
    used: dict[str, str] = {}

    def load(path: Path, entry: GraphEntry) -> Run:
        compiled = core.compile_model(core.read_model(path), "CPU", config)
        used["precision"] = str(compiled.get_property("INFERENCE_PRECISION_HINT")).split("'")[1]
        request = compiled.create_infer_request()

        def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
            request.infer({port.name: inputs[port.name] for port in entry.spec.inputs})
            names = [port.name for port in entry.spec.outputs]
            return {name: np.array(request.get_tensor(name).data) for name in names}

        return run

    session = GraphSession(bundle, RunnerInfo("openvino", version), load)
    settings = {"device": "CPU", "precision": used.get("precision", precision), "threads": str(threads or "default")}
    session.info = RunnerInfo("openvino", version, settings)
    return session
