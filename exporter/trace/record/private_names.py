"""Private names of torch that the quick tracer stands on: none in, those that the installed torch lacks out.

Torch may move them in any release. Where one is missing, ``torch.export`` traces instead, which takes longer, and the
export says so. Whatever else of torch this project uses is public, or has a public way around it.
"""

from __future__ import annotations

import importlib

__all__ = ["MARK", "PRIVATE", "missing_names"]

MARK = "_kvparity_traced"  # attribute of a tensor: its number; torch copies tensors that python refers to elsewhere
PRIVATE = (
    "torch._C.DisableTorchFunction",
    "torch._C.DispatchKey.PreDispatch",
    "torch._C._DisablePythonDispatcher",
    "torch._dispatch.python.enable_python_dispatcher",
    "torch._ops.OpOverload",
    "torch._prims_common.elementwise_dtypes",
    "torch._subclasses.fake_tensor.FakeTensor",
    "torch._subclasses.fake_tensor.unset_fake_temporarily",
    "torch._subclasses.schema_check_mode.SchemaCheckMode",
    "torch.compiler._is_compiling_flag",
    "torch.compiler._is_exporting_flag",
    "torch.onnx._internal.exporter._core._exported_program_to_onnx_program",
    "torch.onnx._internal.exporter._registration.ONNXRegistry",
    "torch.onnx._internal.exporter._registration.OnnxDecompMeta",
    "torch.onnx._internal.exporter._registration._get_overload",
    "torch.onnx._internal.exporter._torchlib._torchlib_registry.get_torchlib_ops",
    "torch.utils._python_dispatch.TorchDispatchMode",
)


def missing_names() -> tuple[str, ...]:
    """Names of :data:`PRIVATE` that this torch does not have."""
    return tuple(name for name in PRIVATE if not _exists(name))


def _exists(name: str) -> bool:
    parts = name.split(".")
    found = None
    for place in range(1, len(parts) + 1):
        if found is None or not hasattr(found, parts[place - 1]):
            try:
                found = importlib.import_module(".".join(parts[:place]))
            except ImportError:
                return False
        else:
            found = getattr(found, parts[place - 1])
    return True
