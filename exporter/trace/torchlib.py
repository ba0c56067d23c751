"""torchlib, torch's own translations to ONNX: only those that a graph needs, since all 557 take half a second."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["registry_for"]


def registry_for(program: Any, table: Mapping[Callable[..., Any], Callable[..., Any]], opset: int) -> Any:
    """A registry of translations for the operators of one traced program.

    Args:
        program: Normalised (:mod:`exporter.trace.fx_normalise`).
        table: Translations that go before torch's own.
        opset: Of torch's own.
    """
    import onnxscript.function_libs.torch_lib.ops  # noqa: F401  (fills the registry)
    import torch
    from onnxscript.function_libs.torch_lib.registration import default_registry
    from torch.onnx._internal.exporter import _registration
    from torch.onnx._internal.exporter._torchlib import _torchlib_registry

    targets = {node.target for node in program.graph_module.graph.nodes if node.op == "call_function"}
    names = {target.name() for target in targets if isinstance(target, torch._ops.OpOverload)}
    registry = _registration.ONNXRegistry()
    registry._opset_version = opset
    for meta in _torchlib_registry.get_torchlib_ops():
        if meta.fx_target in targets:
            registry._register(meta.fx_target, meta)
    for name, overloads in default_registry.items():
        if name.startswith("internal::") or (name.startswith("aten::") and name not in names):
            continue
        target = _registration._get_overload(name)
        if target in targets:
            for function in (*overloads.overloads, *overloads.complex):
                registry._register(target, _described(target, function, function in overloads.complex))
    registry._cleanup_registry_based_on_opset_version()
    for target, function in table.items():
        if target in targets:
            registry.register_op(target, function)
    return registry


def _described(target: Any, function: Any, is_complex: bool) -> Any:
    from torch.onnx._internal.exporter import _registration

    return _registration.OnnxDecompMeta(
        onnx_function=function, fx_target=target, signature=None, is_custom=False, is_complex=is_complex
    )
