"""The order of the passes, from a captured graph to the file in the bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from exporter.capture import Captured, name_ports
from exporter.errors import ExportError
from exporter.lowering import default_opset
from exporter.names import shorten_names
from exporter.passes.digits import keep_digits
from exporter.passes.divide import divide
from exporter.passes.group_queries import group_queries
from exporter.passes.lengths import vector_lengths
from exporter.passes.lower import lower_to_float32
from exporter.passes.nbits import quantize_products
from exporter.passes.norms import fuse_norms
from exporter.passes.one_head import repeat_one_head
from exporter.passes.opset import to_opset
from exporter.passes.plain import plain_shapes
from exporter.passes.probes import find_probes, name_probes
from exporter.passes.repeat import repeat_by_concat
from exporter.passes.reshapes import drop_reshapes
from exporter.passes.rotary import fuse_rotary
from exporter.passes.simplify import drop_casts, simplify
from exporter.passes.skips import fuse_skips
from exporter.passes.targets import constant_targets
from exporter.passes.tidy import tidy
from exporter.weights import Placement

__all__ = ["finish"]

_DTYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}


def finish(
    captured: Captured, placements: Mapping[str, Placement], path: Path, version: str, wide: Captured | None = None
) -> None:
    """Run every pass and write the graph.

    Args:
        captured: As traced.
        placements: Where each weight lies in the bundle.
        path: The ``.onnx`` file to write, beside the weights.
        version: Of kvparity, for the producer field.
        wide: The same graph traced in float64, for the digits of a half-type graph's constants.

    Raises:
        ExportError: The graph needs a weight that the bundle does not have.
    """
    model = captured.model
    for traced in (captured, wide):
        if traced is not None:
            drop_casts(traced.model)
            name_probes(traced.model)
            simplify(traced.model, traced.weights)
    if wide is not None:
        keep_digits(model, wide.model)
    profile = captured.options.profile
    if profile in ("modern", "ort"):
        fuse_norms(model)
        fuse_rotary(model, flat=profile == "ort")
    if captured.options.groups_queries:
        group_queries(model)
    if captured.lifted:
        lower_to_float32(model)
    plain_shapes(model)
    repeat_one_head(model)
    constant_targets(model)
    if profile == "ort":
        drop_reshapes(model)
        fuse_skips(model)
    if profile == "bare":
        divide(model)
        vector_lengths(model)
        repeat_by_concat(model)
    quantize_products(model, placements, captured.options)
    to_opset(model, captured.options.opset or default_opset(captured.options))
    probes = find_probes(model)
    tidy(model, version, probes.values())
    name_ports(model, captured.graph)  # passes may have put other values in a port's place
    _point_at_weights(model, captured.weights, placements)
    shorten_names(model, {name: str(value.name) for name, value in probes.items()}, placements)
    ir.save(model, path)


def _point_at_weights(model: ir.Model, weights: frozenset[str], placements: Mapping[str, Placement]) -> None:
    for name, value in model.graph.initializers.items():
        if name not in weights:
            continue
        if name not in placements:
            raise ExportError(f"the graph needs {name}, which the checkpoint does not have")
        place = placements[name]
        value.const_value = ir.ExternalTensor(
            place.location,
            place.offset,
            place.length,
            _DTYPES[place.dtype],
            shape=ir.Shape(place.shape),
            name=name,
        )
