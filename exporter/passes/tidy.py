"""Names nodes after the module they come from and drops everything that would differ between two machines.

Requires: torch's metadata on nodes.
Ensures: node names unique and readable; no stack traces, no value_info other than ports, opset and IR version set, no
    opset import that no node uses.
"""

from __future__ import annotations

import ast
from collections import Counter

import onnx_ir as ir
import onnx_ir.passes.common as common

__all__ = ["tidy"]

_SCOPES = "pkg.torch.onnx.name_scopes"
IR_VERSION = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11, 24: 12, 25: 13, 26: 13}


def tidy(model: ir.Model, version: str) -> None:
    """Apply the pass."""
    seen: Counter[str] = Counter()
    for node in model.graph:
        scope = _scope(node)
        name = f"{scope}/{node.op_type}" if scope else node.op_type
        seen[name] += 1
        node.name = f"{name}_{seen[name]}" if seen[name] > 1 else name
        node.metadata_props.clear()
        node.doc_string = None
        for output in node.outputs:
            output.metadata_props.clear()
            if not output.is_graph_output():
                output.shape, output.type = None, None
    for value in [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()
        value.doc_string = None
    model.graph.metadata_props.clear()
    model.graph.name = "main_graph"
    model.graph.doc_string = None
    model.producer_name, model.producer_version = "kvparity", version
    common.RemoveUnusedOpsetsPass()(model)  # tinygrad refuses a domain that it does not know, used or not
    model.ir_version = IR_VERSION[model.opset_imports[""]]


def _scope(node: ir.Node) -> str:
    """Path of the module that a node was traced in, from the base model on."""
    scopes = node.metadata_props.get(_SCOPES)
    if not scopes:
        return ""
    names = [name for name in ast.literal_eval(scopes)[:-1] if name and not name.startswith("_")]
    return names[-1].removeprefix("model.").removeprefix("model.") if names else ""
