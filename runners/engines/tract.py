"""tract, Sonos' inference engine in Rust. Inputs are positional.

decode.onnx keeps its symbolic sizes. prefill.onnx is loaded once per prompt length, because tract 0.23.9 folds a mask
that compares two ranges of one symbolic length to a mask of two rows (docs/engines.md has the smallest graph).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kvparity.exporter.contract.bundle import Bundle, GraphEntry
from kvparity.exporter.contract.spec import DECODE
from kvparity.runners.base import Array, RunnerInfo, need, only
from kvparity.runners.engines._session import GraphSession, Run, by_name
from kvparity.runners.engines._static import PerShape, Shapes, shapes_limit

__all__ = ["INSTALL", "describe", "open_session"]

INSTALL = "pip install 'kvparity[tract]'"
TAKES = "the dynamic and static layouts"
_DTYPES = {"int64": "i64", "float32": "f32", "float16": "f16"}


def describe() -> RunnerInfo:
    """Version of tract."""
    return RunnerInfo("tract", need("tract", INSTALL))


def open_session(bundle: Bundle, options: Mapping[str, str]) -> GraphSession:
    """Load both graphs; setting ``shapes``: prompt lengths that prefill.onnx may be loaded for."""
    only(options, "shapes")
    version, budget = describe().version, shapes_limit(options, 64)
    adapted = "prefill.onnx is loaded with fixed sizes, once per batch and prompt length"

    def load(path: Path, entry: GraphEntry) -> Run:
        if entry.spec.kind == DECODE:
            return _load(path, entry, None)
        return PerShape("tract", entry, lambda shapes: _load(path, entry, shapes), budget)

    return GraphSession(bundle, RunnerInfo("tract", version, adapted=adapted), load)


def _load(path: Path, entry: GraphEntry, shapes: Shapes | None) -> Run:
    import tract

    model = tract.onnx().load(str(path))
    for index, port in enumerate(entry.spec.inputs if shapes else ()):
        assert shapes is not None
        sizes = ",".join(str(size) for size in shapes[port.name])
        model.set_input_fact(index, f"{sizes},{_DTYPES[port.dtype]}")
    runnable = model.into_model().into_runnable()

    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        feeds = [np.ascontiguousarray(inputs[port.name]) for port in entry.spec.inputs]
        return by_name(entry, [tensor.to_numpy() for tensor in runnable.run(feeds)])

    return run
