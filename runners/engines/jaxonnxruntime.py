"""jaxonnxruntime: the graph as a JAX function, compiled by XLA once for every set of shapes.

It lacks GreaterOrEqual, so it does not take the static layout.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kvparity.exporter.contract.bundle import Bundle, GraphEntry
from kvparity.exporter.contract.graph_file import load_whole_graph
from kvparity.runners.base import Array, RunnerInfo, need, only
from kvparity.runners.engines._session import GraphSession, Run, by_name, refuse_layouts
from kvparity.runners.engines._static import PerShape, Shapes, shapes_limit

__all__ = ["INSTALL", "describe", "open_session"]

INSTALL = "pip install 'kvparity[jaxonnxruntime]'"
TAKES = "the dynamic layout, compiled per shape"
_SHAPES = 128  # seconds each


def describe() -> RunnerInfo:
    """Versions of jaxonnxruntime and JAX."""
    return RunnerInfo("jaxonnxruntime", need("jaxonnxruntime", INSTALL), {"jax": need("jax", INSTALL)})


def open_session(bundle: Bundle, options: Mapping[str, str]) -> GraphSession:
    """Load both graphs; setting ``shapes``: how many may be compiled, seconds each."""
    only(options, "shapes")
    info, budget = describe(), shapes_limit(options, _SHAPES)
    refuse_layouts("jaxonnxruntime", bundle, "dynamic")
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    from jaxonnxruntime import config
    from jaxonnxruntime.call_onnx import call_onnx_model

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_default_matmul_precision", "highest")
    config.update("jaxort_only_allow_initializers_as_static_args", False)  # sizes are computed from shapes

    def load(path: Path, entry: GraphEntry) -> Run:
        model = load_whole_graph(path)

        def compile_shapes(shapes: Shapes) -> Run:
            blank = {port.name: np.zeros(shapes[port.name], port.dtype) for port in entry.spec.inputs}
            function, weights = call_onnx_model(model, blank)
            compiled = jax.jit(function)

            def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
                results = compiled(weights, {port.name: inputs[port.name] for port in entry.spec.inputs})
                return by_name(entry, [np.asarray(value) for value in results])

            return run

        return PerShape("jaxonnxruntime", entry, compile_shapes, budget)

    settings = {"device": "cpu", **info.settings}
    adapted = "each node became a JAX call, compiled per shape"
    return GraphSession(bundle, RunnerInfo("jaxonnxruntime", info.version, settings, adapted), load)
