"""Torch's own translations to ONNX, only those that a graph needs: describing all 557 takes half a second per graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["registry_for"]


def registry_for(program: Any, table: Mapping[Callable[..., Any], Callable[..., Any]], opset: int) -> Any:
    """A registry of translations for the operators of one traced program.

    Args:
        program: Straightened (:mod:`exporter.fxgraph`).
        table: Translations that go before torch's own.
        opset: Of torch's own.
    """
    import torch
    from torch.onnx._internal._lazy_import import onnxscript_apis
    from torch.onnx._internal.exporter import _registration
    from torch.onnx._internal.exporter._torchlib import _torchlib_registry

    targets = {node.target for node in program.graph_module.graph.nodes if node.op == "call_function"}
    names = {target.name() for target in targets if isinstance(target, torch._ops.OpOverload)}
    registry = _registration.ONNXRegistry()
    registry._opset_version = opset
    for meta in _torchlib_registry.get_torchlib_ops():
        if meta.fx_target in targets:
            registry._register(meta.fx_target, meta)
    for own in onnxscript_apis.get_torchlib_ops():
        if own.qualified_name not in names and own.qualified_name.startswith("aten::"):
            continue
        target = _registration._get_overload(own.qualified_name)
        if target in targets:
            registry._register(
                target,
                _registration.OnnxDecompMeta(
                    onnx_function=own.function,
                    fx_target=target,
                    signature=None,
                    is_custom=False,
                    is_complex=own.is_complex,
                ),
            )
    registry._cleanup_registry_based_on_opset_version()
    for target, function in table.items():
        if target in targets:
            registry.register_op(target, function)
    return registry
