"""What passes get: a traced graph whose ports have names and whose weights have no values yet."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from kvparity.exporter.contract.errors import ExportError
from kvparity.exporter.contract.spec import ExportOptions, GraphSpec

__all__ = ["Captured", "name_ports"]


@dataclass(frozen=True)
class Captured:
    """A traced graph.

    Attributes:
        model: Ports named as in the spec; weights are initializers without values.
        graph: The ports.
        weights: Names of those initializers: transformers' parameter names, tied ones once.
        lifted: Whether it was traced in float64 and has to be lowered to the bundle's dtype.
        options: How it is exported.
        tracer: What traced it: ``recording``, or ``torch.export`` and why.
    """

    model: ir.Model
    graph: GraphSpec
    weights: frozenset[str]
    lifted: bool
    options: ExportOptions
    tracer: str


def name_ports(model: ir.Model, graph: GraphSpec) -> None:
    """Give inputs and outputs the contract's names and dimension names."""
    found = (len(model.graph.inputs), len(model.graph.outputs))
    wanted = (len(graph.inputs), len(graph.outputs))
    if found != wanted:
        raise ExportError(f"the {graph.kind} graph has {found} inputs and outputs, expected {wanted}")
    for value, port in zip([*model.graph.inputs, *model.graph.outputs], [*graph.inputs, *graph.outputs], strict=True):
        value.name = port.name
        value.shape = ir.Shape(port.shape)
