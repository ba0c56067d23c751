"""The order of the passes, from a captured graph to the file in the bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from kvparity.exporter.checkpoint.weights import Placement
from kvparity.exporter.contract.errors import ExportError
from kvparity.exporter.contract.probes import keep_probes
from kvparity.exporter.passes.cancel_reshapes import drop_reshapes
from kvparity.exporter.passes.constant_shapes import constant_targets
from kvparity.exporter.passes.expand_as_concat import repeat_by_concat
from kvparity.exporter.passes.expand_single_kv_head import repeat_one_head
from kvparity.exporter.passes.explicit_slices import plain_shapes
from kvparity.exporter.passes.float64_to_float32 import lower_to_float32
from kvparity.exporter.passes.fold_constants import drop_casts, simplify
from kvparity.exporter.passes.group_query_attention import group_queries
from kvparity.exporter.passes.half_type_constants import keep_digits
from kvparity.exporter.passes.matmul_nbits import quantize_products
from kvparity.exporter.passes.node_names import tidy
from kvparity.exporter.passes.opset import to_opset
from kvparity.exporter.passes.probe_names import find_probes, name_probes
from kvparity.exporter.passes.reciprocal_to_div import divide
from kvparity.exporter.passes.rms_normalization import fuse_norms
from kvparity.exporter.passes.rotary_embedding import fuse_rotary
from kvparity.exporter.passes.skip_normalization import fuse_skips
from kvparity.exporter.passes.slice_bounds import vector_lengths
from kvparity.exporter.trace.capture import Captured, name_ports
from kvparity.exporter.trace.onnx_translations import default_opset

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
    tidy(model, version, probes, {*captured.weights, *placements})
    name_ports(model, captured.graph)  # passes may have put other values in a port's place
    keep_probes(model, {path: str(value.name) for path, value in probes.items()})
    _point_at_weights(model, captured.weights, placements)
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
