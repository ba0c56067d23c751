"""A bundle whose graph has more outputs and inputs, so that any engine can be asked for values inside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvparity.exporter.contract.bundle import Bundle, file_entry, write_manifest
from kvparity.exporter.contract.spec import GraphKind, GraphSpec, Port
from kvparity.runners.isolation.plain_folder import link_files, scratch_near

__all__ = ["probed_bundle"]


@contextmanager
def probed_bundle(bundle: Bundle, kind: GraphKind, model: Any) -> Iterator[Bundle]:
    """A temporary bundle that is the given one but for one graph.

    Args:
        bundle: The original.
        kind: Which graph is replaced.
        model: onnx_ir model of that graph, in the bundle's own dtypes; inputs and outputs may have been added.
    """
    import onnx_ir as ir

    with scratch_near(bundle) as name:
        root = Path(name)
        other = [bundle.graph(graph).file.path for graph in bundle.manifest.graphs if graph != kind]
        link_files(
            bundle, root, [*other, *(entry.path for entry in (*bundle.manifest.weights, *bundle.manifest.files))]
        )
        path = root / bundle.graph(kind).file.path
        ir.save(model, path)
        entry = bundle.graph(kind)
        spec = _extended(entry.spec, model)
        graphs = {**bundle.manifest.graphs, kind: replace(entry, file=file_entry(root, path), spec=spec)}
        manifest = replace(bundle.manifest, graphs=graphs, cases=())
        write_manifest(root, manifest)
        yield Bundle(root, manifest)


def _extended(spec: GraphSpec, model: Any) -> GraphSpec:
    """The ports of the spec and whatever the model has beyond them."""
    known = {port.name for port in (*spec.inputs, *spec.outputs)}
    inputs = [_port(value) for value in model.graph.inputs if value.name not in known]
    outputs = [_port(value) for value in model.graph.outputs if value.name not in known]
    return replace(spec, inputs=(*spec.inputs, *inputs), outputs=(*spec.outputs, *outputs))


def _port(value: Any) -> Port:
    shape = () if value.shape is None else tuple(d if isinstance(d, int) else str(d) for d in value.shape)
    return Port(str(value.name), "float32" if value.dtype is None else value.dtype.numpy().name, shape)
