"""Turns probe nodes into value names.

Requires: every probe is an Identity whose output carries the probe's name in its metadata.
Ensures: no probe node is left; the value that it named carries the name unless it is a graph port.
"""

from __future__ import annotations

import onnx_ir as ir

from exporter.lowering import PROBE

__all__ = ["name_probes"]


def name_probes(model: ir.Model) -> None:
    """Apply the pass; the innermost name wins where two probes name one value."""
    taken: set[str] = {value.name or "" for value in [*model.graph.inputs, *model.graph.outputs]}
    for node in list(model.graph):
        if node.op_type != "Identity" or PROBE not in node.outputs[0].metadata_props:
            continue
        source, named = node.inputs[0], node.outputs[0]
        assert source is not None
        name = named.metadata_props[PROBE]
        if named.is_graph_output():
            continue
        if source.producer() is not None and PROBE not in source.metadata_props and name not in taken:
            source.metadata_props[PROBE] = name
            if not source.is_graph_output():
                source.name = name
                taken.add(name)
        named.replace_all_uses_with(source)
        model.graph.remove(node, safe=True)
