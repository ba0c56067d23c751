"""The pipeline of passes: a captured graph in, the ``.onnx`` file of the bundle out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from kvparity.exporter.contract.errors import ExportError
from kvparity.exporter.contract.placement import Placement
from kvparity.exporter.contract.spec import DECODE, ExportOptions
from kvparity.exporter.passes.cancel_reshapes import drop_reshapes
from kvparity.exporter.passes.captured import Captured, name_ports
from kvparity.exporter.passes.constant_shapes import constant_targets
from kvparity.exporter.passes.expand_as_concat import repeat_by_concat
from kvparity.exporter.passes.expand_single_kv_head import repeat_one_head
from kvparity.exporter.passes.explicit_slices import plain_shapes
from kvparity.exporter.passes.float64_to_float32 import lower_to_float32
from kvparity.exporter.passes.fold_constants import drop_casts, simplify
from kvparity.exporter.passes.group_query_attention import group_queries
from kvparity.exporter.passes.half_type_constants import keep_digits
from kvparity.exporter.passes.linear_attention import spell_linear_attention, use_runtime_kernel
from kvparity.exporter.passes.matmul_nbits import quantize_products
from kvparity.exporter.passes.node_names import tidy
from kvparity.exporter.passes.opset import LINEAR_ATTENTION, default_opset, to_opset
from kvparity.exporter.passes.probe_names import name_probes
from kvparity.exporter.passes.reciprocal_to_div import divide
from kvparity.exporter.passes.rms_normalization import fuse_norms
from kvparity.exporter.passes.rotary_embedding import fuse_rotary
from kvparity.exporter.passes.selective_scan import spell_selective_scan
from kvparity.exporter.passes.skip_normalization import fuse_skips
from kvparity.exporter.passes.slice_bounds import vector_lengths

__all__ = ["PASSES", "Pass", "finish"]

_DTYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}


@dataclass(frozen=True)
class _Export:
    """What passes are told: how the graph is exported, where its weights lie, the version of kvparity."""

    captured: Captured
    placements: Mapping[str, Placement]
    version: str

    @property
    def options(self) -> ExportOptions:
        return self.captured.options

    @property
    def fused(self) -> bool:
        """Whether the profile has the operators of opset 23."""
        return self.options.profile in ("modern", "ort")

    @property
    def opset(self) -> int:
        return self.options.opset or default_opset(self.options, self.captured.graph)

    @property
    def few(self) -> bool:
        """Whether a call has mostly one token."""
        return self.captured.graph.kind == DECODE

    @property
    def plain_recurrences(self) -> bool:
        """Whether recurrences are spelled out: LinearAttention is ONNX Runtime's own, or too young for the opset."""
        return self.options.profile != "ort" and not (self.fused and self.opset >= LINEAR_ATTENTION)


@dataclass(frozen=True)
class Pass:
    """One pass of the pipeline.

    Attributes:
        run: The pass; its name is the function's.
        when: Whether an export needs it; None where every one does.
        given: Its arguments behind the model.
    """

    run: Callable[..., None]
    when: Callable[[_Export], bool] | None = None
    given: Callable[[_Export], tuple[object, ...]] = lambda export: ()


PASSES = (
    Pass(fuse_norms, lambda export: export.fused),
    Pass(fuse_rotary, lambda export: export.fused, lambda export: (export.options.profile == "ort",)),
    Pass(group_queries, lambda export: export.options.groups_queries),
    Pass(lower_to_float32, lambda export: export.captured.lifted),
    Pass(use_runtime_kernel, lambda export: export.options.profile == "ort"),
    Pass(spell_linear_attention, lambda export: export.plain_recurrences, lambda export: (export.few,)),
    Pass(spell_selective_scan),
    Pass(plain_shapes),
    Pass(repeat_one_head),
    Pass(constant_targets),
    Pass(drop_reshapes, lambda export: export.options.profile == "ort"),
    Pass(fuse_skips, lambda export: export.options.profile == "ort"),
    Pass(divide, lambda export: export.options.profile == "bare"),
    Pass(vector_lengths, lambda export: export.options.profile == "bare"),
    Pass(repeat_by_concat, lambda export: export.options.profile == "bare"),
    Pass(quantize_products, None, lambda export: (export.placements, export.options, export.few)),
    Pass(to_opset, None, lambda export: (export.opset,)),
    Pass(name_ports, None, lambda export: (export.captured.graph,)),  # others may stand in a port's place by now
    Pass(tidy, None, lambda export: (export.version, {*export.captured.weights, *export.placements})),
)


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
        ExportError: The graph needs a weight that the bundle does not have, or a pass left a wrong graph.
    """
    model, export = captured.model, _Export(captured, placements, version)
    try:
        for traced in (captured, wide):
            if traced is not None:
                drop_casts(traced.model)
                name_probes(traced.model)
                simplify(traced.model, traced.weights)
        if wide is not None:
            keep_digits(model, wide.model)
        for each in PASSES:
            if each.when is None or each.when(export):
                each.run(model, *each.given(export))
    except ir.passes.InvariantError as error:
        raise ExportError(f"{path.name}: a graph pass is at fault, please report it: {error}") from error
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
