"""What an engine must support to read a graph, in words; the versions of ONNX Runtime are measured or from its table.

Operators are stricter than the opset where an older kernel gives wrong numbers: see docs/engines.md.
"""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["minimum_runtime"]

# First ONNX Runtime that reads an opset (its compatibility table; 23 and later measured).
_RUNTIME = {
    17: "1.12",
    18: "1.14",
    19: "1.15",
    20: "1.17",
    21: "1.18",
    22: "1.21",
    23: "1.23",
    24: "1.24",
    25: "1.24",
    26: "1.25",
    27: "1.32",
}


def minimum_runtime(model: ir.Model) -> str:
    """The requirement of one graph: opset, the oldest ONNX Runtime that computes it rightly, and why."""
    opset = model.opset_imports[""]
    oldest, why = _RUNTIME.get(opset, "1.32"), ""
    for node in model.graph:
        version, reason = _operator(node)
        if _key(version) > _key(oldest):
            oldest, why = version, f" ({reason})"
    return f"opset {opset}: ONNX Runtime {oldest} or later{why}"


def _operator(node: ir.Node) -> tuple[str, str]:
    """(first ONNX Runtime whose kernel is right, what it is needed for)."""
    if node.op_type == "TensorScatter":
        return "1.25", "has no TensorScatter before"
    softcap = node.attributes.get("softcap")
    if node.op_type == "Attention" and softcap is not None and softcap.as_float() > 0:
        return "1.27", "Attention with softcap and masked keys is off by 1e-3 before"
    return "0", ""


def _key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
