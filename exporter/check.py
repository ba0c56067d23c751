"""Graph checks: an exported graph in, an error where ports, operators, versions or external data are wrong."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir

from kvparity.exporter.contract.bundle import inside
from kvparity.exporter.contract.errors import ExportError, lines_of
from kvparity.exporter.contract.spec import ExportOptions, GraphSpec

__all__ = ["check_graph", "external_files"]

_DOMAINS = {"bare": {""}, "portable": {""}, "modern": {""}, "ort": {"", "com.microsoft"}}
_QUANTIZED = {"MatMulNBits", "GatherBlockQuantized"}  # the only operators that --quantize adds to a profile
_FORBIDDEN = {
    "bare": {"Pow", "Gelu", "Range", "CastLike", "Cos", "Sin", "Reciprocal", "Mod", "ScatterElements"},
    "portable": {"Pow", "Gelu", "CastLike"},
}


def check_graph(path: Path, spec: GraphSpec, options: ExportOptions) -> ir.Model:
    """Check one graph of a bundle.

    Args:
        path: The ``.onnx`` file; its weights lie beside it.
        spec: The ports that were promised.
        options: Its profile decides which domains and operators are allowed.

    Returns:
        The graph, weights unread.

    Raises:
        ExportError: Names the first thing that is wrong.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)  # types and shapes of every value
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{path.name}: the ONNX checker refuses it ({lines_of(error)[0][:300]})") from error
    model = ir.load(path)
    _check_ports(path.name, model, spec)
    profile = options.profile
    extra = _QUANTIZED if options.quantize != "none" else set()
    domains = {node.domain for node in model.graph if node.op_type not in extra} - _DOMAINS[profile]
    if domains:
        raise ExportError(f"{path.name}: operators of domain {sorted(domains)} are not in profile {profile!r}")
    unwanted = {node.op_type for node in model.graph} & _FORBIDDEN.get(profile, set())
    if unwanted:
        advice = "; this model needs more than its plain ones, use --profile portable" if profile == "bare" else ""
        raise ExportError(f"{path.name}: operators {sorted(unwanted)} are not in profile {profile!r}{advice}")
    if model.functions:
        raise ExportError(f"{path.name}: has {len(model.functions)} local functions; engines want a flat graph")
    for file, end in external_files(model).items():
        target = inside(path.parent, file)
        if not target.is_file() or target.stat().st_size < end:
            raise ExportError(f"{path.name}: points at byte {end} of {file}, which is missing or shorter")
    _check_loads(path, options)
    return model


def _check_loads(path: Path, options: ExportOptions) -> None:
    """Open the graph in ONNX Runtime, which infers types by itself; nothing is optimised, packed or run.

    That a kernel is missing on this machine's CPU is no fault of a graph for another provider, or in bfloat16.
    """
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.add_session_config_entry("session.disable_prepacking", "1")
    settings.log_severity_level = 4
    try:
        ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors have no common class
        kind = type(error).__name__
        elsewhere = options.provider != "cpu" or options.dtype == "bfloat16"
        if (kind == "NotImplemented" and elsewhere) or "opset" in str(error).lower():  # newer than this ONNX Runtime
            return
        raise ExportError(f"{path.name}: ONNX Runtime cannot load it ({lines_of(error)[0][:300]})") from error


def _check_ports(name: str, model: ir.Model, spec: GraphSpec) -> None:
    for side, values, ports in (
        ("input", model.graph.inputs, spec.inputs),
        ("output", model.graph.outputs, spec.outputs),
    ):
        if len(values) != len(ports):
            raise ExportError(f"{name}: has {len(values)} {side}s, expected {len(ports)}")
        for value, port in zip(values, ports, strict=True):
            dtype = value.dtype.numpy().name if value.dtype is not None else "unknown"
            shape = tuple(d if isinstance(d, int) else d.value for d in value.shape) if value.shape else ()
            if (value.name, dtype, shape) != (port.name, port.dtype, port.shape):
                raise ExportError(
                    f"{name}: {side} {value.name} is {dtype}{shape}, expected {port.name} {port.dtype}{port.shape}"
                )


def external_files(model: ir.Model) -> dict[str, int]:
    """Files that a graph points at, with the last byte needed of each."""
    files: dict[str, int] = {}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            end = (tensor.offset or 0) + (tensor.length or 0)
            files[str(tensor.location)] = max(files.get(str(tensor.location), 0), end)
    return files
