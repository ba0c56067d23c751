"""Foreign packages for tests: the tiny bundle's graphs with other names, no metadata, and damage where asked for."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvparity.exporter.contract.bundle import Bundle

__all__ = ["foreign_package", "renamed", "strip_names"]


def renamed(name: str) -> str:
    """Our port as another exporter might call it."""
    parts = name.split(".")
    if parts[0] == "past_key_values":
        return f"past_{parts[2]}_{parts[1]}"
    return f"present_{parts[2]}_{parts[1]}" if parts[0] == "present" else name


def strip_names(model: Any) -> None:
    """Rename every port, value and node of an onnx_ir model, and drop its metadata, in place."""
    model.metadata_props.clear()
    model.producer_name = "somebody"
    names = iter(range(10**6))
    for node in model.graph:
        node.name = f"n{next(names)}"
        for value in node.outputs:
            if not value.is_graph_output():
                value.name = f"v{next(names)}"
    for value in [*model.graph.inputs, *model.graph.outputs]:
        value.name = renamed(str(value.name))


def foreign_package(bundle: Bundle, folder: Path, edit: Callable[[Any], None] = lambda model: None) -> Path:
    """Write prefill.onnx, decode.onnx and their data as somebody else's.

    Args:
        bundle: Where the graphs come from.
        folder: Where to.
        edit: Changes a graph, as an onnx_ir model, before it is written.
    """
    import onnx_ir as ir

    folder.mkdir()
    shutil.copyfile(bundle.root / bundle.manifest.weights[0].path, folder / "weights.bin")
    for kind in ("prefill", "decode"):
        model = ir.load(bundle.root / f"{kind}.onnx")
        edit(model)
        strip_names(model)
        for name, value in list(model.graph.initializers.items()):
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                place = (tensor.offset, tensor.length, tensor.dtype)
                value.const_value = ir.ExternalTensor("weights.bin", *place, shape=tensor.shape, name=name)
        ir.save(model, folder / f"{kind}.onnx")
    return folder
