"""Names nodes after the module they come from and drops everything that would differ between two machines.

Requires: torch's metadata on nodes.
Ensures: node names unique and readable; values that nobody looks up have short names; no stack traces, no value_info
    other than ports, no attribute that says its default, opset and IR version set, no opset import that no node uses.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Collection
from itertools import count

import onnx_ir as ir
import onnx_ir.passes.common as common

from kvparity.exporter.contract.names import number

__all__ = ["tidy"]

_SCOPES = "pkg.torch.onnx.name_scopes"
_DEFAULTS = {"keepdims": 1, "noop_with_empty_axes": 0}  # the same in every opset and engine
IR_VERSION = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11, 24: 12, 25: 13, 26: 13}


def tidy(model: ir.Model, version: str, kept: Collection[ir.Value] = ()) -> None:
    """Apply the pass.

    Args:
        model: The graph.
        version: Of kvparity.
        kept: Values that keep their names; ports and initializers do as well.
    """
    seen: Counter[str] = Counter()
    _shorten(model, set(kept))
    for node in model.graph:
        scope = _scope(node)
        name = f"{scope}/{node.op_type}" if scope else node.op_type
        seen[name] += 1
        node.name = f"{name}_{seen[name]}" if seen[name] > 1 else name
        node.metadata_props.clear()
        node.doc_string = None
        for attribute, value in _DEFAULTS.items():
            if attribute in node.attributes and node.attributes[attribute].value == value:
                del node.attributes[attribute]
        for output in node.outputs:
            output.metadata_props.clear()
            if not output.is_graph_output():
                output.shape, output.type = None, None
    for port in [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]:
        port.metadata_props.clear()
        port.doc_string = None
    for weight in model.graph.initializers.values():
        weight.shape, weight.type = None, None  # the tensor has both
    model.graph.metadata_props.clear()
    model.graph.name = "main_graph"
    model.graph.doc_string = None
    model.producer_name, model.producer_version = "kvparity", version
    common.RemoveUnusedOpsetsPass()(model)  # tinygrad refuses a domain that it does not know, used or not
    model.ir_version = IR_VERSION[model.opset_imports[""]]


def _shorten(model: ir.Model, kept: Collection[ir.Value]) -> None:
    """Number the values that are neither probes nor ports, in base 36: names are a tenth of a small graph."""
    known = {value.name for value in [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]}
    known |= {value.name for value in kept}
    names = (name for index in count() if (name := number(index)) not in known)
    for node in model.graph:
        for output in node.outputs:
            if output.name and output not in kept and not output.is_graph_output():
                output.name = next(names)


def _scope(node: ir.Node) -> str:
    """Path of the module that a node was traced in, from the base model on."""
    scopes = node.metadata_props.get(_SCOPES)
    if not scopes:
        return ""
    names = [name for name in ast.literal_eval(scopes)[:-1] if name and not name.startswith("_")]
    return names[-1].removeprefix("model.").removeprefix("model.") if names else ""
