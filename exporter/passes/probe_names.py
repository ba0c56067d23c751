"""Probes: Identity nodes that carry a module's path in, values that are called by the path out.

Requires: every probe is an Identity whose output carries the probe's name in its metadata.
Ensures: no probe node is left; the value that it named carries the name unless it is a graph port.
"""

from __future__ import annotations

import onnx_ir as ir

from kvparity.exporter.passes.conditions import graph_pass

__all__ = ["PROBE", "find_probes", "name_probes"]

PROBE = "kvparity.probe"  # metadata of a node's output: the module's path


@graph_pass()
def name_probes(model: ir.Model) -> None:
    """Name values by their probes; the innermost name wins where two probes name one value."""
    taken: set[str] = {value.name or "" for value in [*model.graph.inputs, *model.graph.outputs]}
    for node in list(model.graph):
        if node.op_type != "Identity" or PROBE not in node.outputs[0].metadata_props:
            continue
        source, named = node.inputs[0], node.outputs[0]
        assert source is not None
        name = named.metadata_props[PROBE]
        source = _through_ones(source)
        fresh = source.producer() is not None and PROBE not in source.metadata_props and name not in taken
        if fresh:
            source.metadata_props[PROBE] = name
        if named.is_graph_output():
            continue
        if fresh and not source.is_graph_output():
            source.name = name
            taken.add(name)
        named.replace_all_uses_with(source)
        model.graph.remove(node, safe=True)


def _through_ones(value: ir.Value) -> ir.Value:
    """What a chain of multiplications by one starts from: the optimiser removes those, and their names with them."""
    node = value.producer()
    while node is not None and node.op_type == "Mul" and len(node.inputs) == 2:
        left, right = node.inputs
        factor = None if right is None else ir.convenience.get_const_tensor(right)
        if left is None or factor is None or factor.size != 1 or factor.numpy().item() != 1.0:
            break
        value, node = left, left.producer()
    return value


def find_probes(model: ir.Model) -> dict[str, ir.Value]:
    """Every value that still carries a probe's name in its metadata, in execution order."""
    found: dict[str, ir.Value] = {}
    for node in model.graph:
        for value in node.outputs:
            name = value.metadata_props.get(PROBE)
            if name is not None:
                found.setdefault(name, value)
    return found
