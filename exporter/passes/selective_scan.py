"""Mamba-1's recurrence in plain operators: a Scan over tokens, or none where a call has one token.

Every entry of a state decays by its own factor, so that chunks of matrix products, as in
:mod:`exporter.passes.linear_attention`, would take a matrix per entry. A step reads and writes the whole state whatever
its form, which is what a Scan over tokens does; transformers does the same.

Ensures: none is left.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from kvparity.exporter.passes.conditions import graph_pass, lacks
from kvparity.exporter.passes.linear_attention import Nodes, put_in_place

__all__ = ["SELECTIVE_SCAN", "spell_selective_scan"]

SELECTIVE_SCAN = "kvparity.states"  # domain of the operator between the trace and this pass


@graph_pass(ensures=[lacks("SelectiveScan")])
def spell_selective_scan(model: ir.Model) -> None:
    """Spell it: inputs (batch, sequence, channels), steps, rates, keys, queries and the state before the call."""
    axis = {number: _constant(model, number) for number in (1, 2)}
    for node in [node for node in model.graph if node.op_type == "SelectiveScan"]:
        inputs, step, rate, key, query, state = node.inputs
        assert inputs is not None
        assert state is not None
        tokens = None if inputs.shape is None else inputs.shape[1]
        main = Nodes(node, "")
        if tokens == 1:
            parts = [main("Squeeze", part, axis[1]) for part in (inputs, step, key, query)]
            after, output = _step(main, axis, rate, state, *parts)
            output = main("Unsqueeze", output, axis[1])
        else:
            body = Nodes(node, "scan")
            ports = [ir.Value(name=f"{node.outputs[0].name}/scan.{index}") for index in range(5)]
            made = _step(body, axis, rate, *ports)
            graph = ir.Graph(ports, made, nodes=body.nodes, name="token")
            along = {"scan_input_axes": [1] * 4, "scan_output_axes": [1]}
            scanned = (state, inputs, step, key, query)
            after, output = main.several("Scan", 2, *scanned, body=graph, num_scan_inputs=4, **along)
        put_in_place(model, node, main, output, after)
    model.opset_imports.pop(SELECTIVE_SCAN, None)


def _step(b: Nodes, axis: dict[int, ir.Value], rate: Any, state: Any, x: Any, dt: Any, key: Any, query: Any) -> Any:
    """One token: (state, output) of x and dt (batch, channels), key and query (batch, size)."""
    kept = b("Exp", b("Mul", b("Unsqueeze", dt, axis[2]), rate))
    added = b("Mul", b("Unsqueeze", b("Mul", dt, x), axis[2]), b("Unsqueeze", key, axis[1]))
    state = b("Add", b("Mul", state, kept), added)
    return state, b("Squeeze", b("MatMul", state, b("Unsqueeze", query, axis[2])), axis[2])


def _constant(model: ir.Model, number: int) -> ir.Value:
    """The axis of that number as an initializer."""
    name = f"selective_scan.axis_{number}"
    if name not in model.graph.initializers:
        tensor = ir.tensor(np.asarray([number], np.int64), name=name)
        shape, dtype = ir.Shape([1]), ir.TensorType(ir.DataType.INT64)
        model.graph.register_initializer(ir.Value(name=name, const_value=tensor, shape=shape, type=dtype))
    return model.graph.initializers[name]
