"""Node and value names of the graph file: a graph with torch's metadata in, one named by module paths out.

Netron, ONNX Runtime's errors and its profiles show these names. A node is ``layers.1.self_attn.q_norm/Mul``, the value
that a module returns (a probe) ``layers.1.self_attn.q_norm``, a weight what the checkpoint calls it. A value inside of
a module is ``layers.1/Mul_7``, its layer and operator, and constants are ``c0``, ``c1``, …: with whole paths, the two
graphs of a small model would take more than 2 % of its weights.

Requires: torch's metadata on nodes.
Ensures: names are unique and the same on every machine; no stack traces, no value_info other than ports, no attribute
    that says its default, opset and IR version set, no opset import that no node uses.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Collection, Mapping

import onnx_ir as ir
import onnx_ir.passes.common as common

from kvparity.exporter.contract.probes import keep_probes
from kvparity.exporter.contract.spec import FLOAT64_CONSTANTS
from kvparity.exporter.passes.conditions import digits_round, graph_pass, unique_names
from kvparity.exporter.passes.probe_names import find_probes

__all__ = ["tidy"]

_SCOPES = "pkg.torch.onnx.name_scopes"
_LAYER = re.compile(r"[^/]*?\.\d+(?![^.])")  # a path up to its first number
_DEFAULTS = {"keepdims": 1, "noop_with_empty_axes": 0}  # the same in every opset and engine
IR_VERSION = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11, 24: 12, 25: 13, 26: 13, 27: 13}


@graph_pass(ensures=[unique_names, digits_round])
def tidy(model: ir.Model, version: str, weights: Collection[str]) -> None:
    """Name nodes, values and constants, and drop what no reader of the file needs.

    Args:
        model: The graph.
        version: Of kvparity.
        weights: Initializers that keep their names.
    """
    seen: Counter[str] = Counter()
    probes = find_probes(model)
    _name_values(model, probes)
    _name_constants(model, weights)
    for node in model.graph:
        scope = _scope(node)
        node.name = _counted(seen, f"{scope}/{node.op_type}" if scope else node.op_type)
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
    keep_probes(model, {path: str(value.name) for path, value in probes.items()})
    model.ir_version = IR_VERSION[model.opset_imports[""]]


def _name_values(model: ir.Model, probes: Mapping[str, ir.Value]) -> None:
    """Call probes by their paths, other values by layer and operator, with a ``/`` that no path has."""
    ports = {value.name for value in [*model.graph.inputs, *model.graph.outputs]}
    paths = {value: path for path, value in probes.items() if path not in ports}
    seen: Counter[str] = Counter()
    for node in model.graph:
        scope = _scope(node)
        layer = _LAYER.match(scope)
        for value in (value for value in node.outputs if value.name and not value.is_graph_output()):
            value.name = paths.get(value) or _counted(seen, f"{layer[0] if layer else scope}/{node.op_type}")


def _counted(seen: Counter[str], name: str) -> str:
    """The name, with a number from its second use on."""
    seen[name] += 1
    return f"{name}_{seen[name]}" if seen[name] > 1 else name


def _name_constants(model: ir.Model, weights: Collection[str]) -> None:
    """Call the constants ``c0``, ``c1``, …, the most used ones first; their float64 digits follow."""
    digits = json.loads(model.metadata_props.get(FLOAT64_CONSTANTS, "{}"))
    initializers = model.graph.initializers
    ours = sorted(initializers.keys() - set(weights), key=list(initializers).index)
    ours = [name for name in ours if "." not in name]  # a computed buffer has its path
    values = [initializers[name] for name in sorted(ours, key=lambda name: -len(initializers[name].uses()))]
    old = [str(value.name) for value in values]
    for index, value in enumerate(values):
        value.name = f"constant/{index}"  # out of the way of the names to give
    for index, (value, before) in enumerate(zip(values, old, strict=True)):
        value.name = f"c{index}"
        if before in digits:
            digits[value.name] = digits.pop(before)
    if digits:
        model.metadata_props[FLOAT64_CONSTANTS] = json.dumps(digits, sort_keys=True)


def _scope(node: ir.Node) -> str:
    """Path of the module that a node was traced in, from the base model on."""
    scopes = node.metadata_props.get(_SCOPES)
    if not scopes:
        return ""
    names = [name for name in ast.literal_eval(scopes)[:-1] if name and not name.startswith("_")]
    return names[-1].removeprefix("model.").removeprefix("model.") if names else ""
