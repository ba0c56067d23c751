"""A foreign graph made ready for locating: in our contract's ports, its values named after PyTorch's modules."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.graph_file import external_tensors
from kvparity.exporter.contract.ports import graph_spec
from kvparity.exporter.contract.spec import GraphKind
from kvparity.runners.base import Array
from kvparity.runners.engines.exact import bundle_graph
from kvparity.runners.locate.pairing import name_probes, pair_values
from kvparity.runners.locate.probe_diff import Call

__all__ = ["FLOAT32_CONSTANTS", "named_copy"]

FLOAT32_CONSTANTS = 2e-6  # relative: other exporters keep factors such as 1 / sqrt(2) and epsilons in float32


def named_copy(
    bundle: Bundle, call: Call, watch: Callable[[GraphKind, Mapping[str, Array]], dict[str, Array]]
) -> tuple[Bundle, TemporaryDirectory[str]]:
    """A bundle with one graph, the one of a call, that has probes like one of ours.

    Args:
        bundle: An adopted bundle.
        call: The call that is looked into.
        watch: PyTorch's values of a call in float64, by module path.

    Returns:
        The bundle, and the folder that it lies in: clean it up when done.
    """
    import onnx_ir as ir

    kind = call.step.graph
    folder = TemporaryDirectory(prefix="kvparity-foreign-")
    model = bundle_graph(bundle, kind)
    name_probes(model, pair_values(bundle, call, watch(kind, call.feeds)))
    for index, path in enumerate(dict.fromkeys(str(tensor.path) for _, tensor in external_tensors(model))):
        os.symlink(Path(path).resolve(), Path(folder.name) / f"data_{index}")
        for value, tensor in external_tensors(model):
            if str(tensor.path) == path:
                place = (tensor.offset, tensor.length, tensor.dtype)
                moved = ir.ExternalTensor(f"data_{index}", *place, shape=tensor.shape, name=value.name or "")
                value.const_value = moved
    ir.save(model, Path(folder.name) / "graph.onnx")
    entry = bundle.graph(_played_by(bundle, kind))
    entry = replace(entry, file=replace(entry.file, path="graph.onnx"))
    entry = replace(entry, spec=graph_spec(kind, bundle.model, bundle.options))
    manifest = replace(bundle.manifest, graphs={kind: entry}, foreign=None)
    return Bundle(Path(folder.name), manifest), folder


def _played_by(bundle: Bundle, kind: GraphKind) -> GraphKind:
    assert bundle.manifest.foreign is not None
    return bundle.manifest.foreign.graphs[kind].run
