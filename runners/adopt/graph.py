"""Reads a foreign graph as untrusted data: its ports, operators and the files that it points at; runs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from kvparity.exporter.contract.errors import BundleError
from kvparity.exporter.contract.spec import Port

__all__ = ["GraphFile", "read_graph"]

_MOST_BYTES = 2_147_483_647  # protobuf's own limit
_MOST_NODES = 500_000
_DOMAINS = {"", "ai.onnx", "com.microsoft", "pkg.onnxscript.torch_lib", "pkg.torch.2", "ai.onnx.ml"}


@dataclass(frozen=True)
class GraphFile:
    """A foreign graph.

    Attributes:
        path: The file.
        inputs: Ports that must be fed.
        outputs: Ports that it returns.
        opset: Opset version by domain.
        ir_version: IR version.
        data_files: Files of external data, relative to the graph's folder, POSIX.
        operators: How often each operator stands in it, subgraphs and functions included.
    """

    path: Path
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    opset: dict[str, int]
    ir_version: int
    data_files: tuple[str, ...]
    operators: dict[str, int]


def read_graph(path: Path, root: Path) -> GraphFile:
    """Read a graph without its weights.

    Args:
        path: The ``.onnx`` file.
        root: The package's folder: nothing that the graph names may lie outside it.

    Raises:
        BundleError: Not a graph, too large, operators of a library that would have to be loaded, or files outside.
    """
    import onnx

    name = path.name
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise BundleError(f"{name}: {size} bytes; a graph file holds at most 2 GB, the rest is external data")
        proto = onnx.load(str(path), load_external_data=False)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror})") from error
    except BundleError:
        raise
    except Exception as error:  # protobuf's DecodeError, and what its parser raises besides
        raise BundleError(f"{path}: not an ONNX graph (its bytes are not a ModelProto)") from error
    if not proto.graph.node or not proto.graph.output:
        raise BundleError(f"{path}: not an ONNX graph with nodes and outputs")
    operators = _operators(proto, name)
    foreign = sorted({key.rpartition(".")[0] for key in operators} - _DOMAINS - {f.domain for f in proto.functions})
    if foreign:
        raise BundleError(
            f"{name}: operators of domain {foreign[0]!r} need a library of their own, which is never loaded"
        )
    weights = {tensor.name for tensor in proto.graph.initializer}
    inputs = tuple(_port(value, name) for value in proto.graph.input if value.name not in weights)
    outputs = tuple(_port(value, name) for value in proto.graph.output)
    opset = {item.domain: int(item.version) for item in proto.opset_import}
    return GraphFile(path, inputs, outputs, opset, int(proto.ir_version), _data_files(proto, path, root), operators)


def _operators(proto: Any, name: str) -> dict[str, int]:
    """Operator names with their domain, ``com.microsoft.MatMulNBits``; plain ones begin with a dot."""
    counts: dict[str, int] = {}
    pending = [*proto.graph.node, *(node for function in proto.functions for node in function.node)]
    seen = 0
    while pending:
        node = pending.pop()
        seen += 1
        if seen > _MOST_NODES:
            raise BundleError(f"{name}: has more than {_MOST_NODES:,} nodes; not a decoder that is judged here")
        key = f"{node.domain if node.domain != 'ai.onnx' else ''}.{node.op_type}"
        counts[key] = counts.get(key, 0) + 1
        for attribute in node.attribute:
            pending += [*attribute.g.node, *(item for graph in attribute.graphs for item in graph.node)]
    return counts


def _port(value: Any, name: str) -> Port:
    import onnx_ir as ir

    kind = value.type.tensor_type
    try:
        dtype = ir.DataType(kind.elem_type).numpy().name
    except (ValueError, TypeError) as error:
        raise BundleError(f"{name}: port {value.name} is not a tensor of a known type") from error
    shape = tuple(
        int(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or f"{value.name}_{axis}"
        for axis, dim in enumerate(kind.shape.dim)
    )
    return Port(value.name, dtype, shape)


def _data_files(proto: Any, path: Path, root: Path) -> tuple[str, ...]:
    """Files of external data, each named below the graph's folder and inside the package."""
    tensors = [*proto.graph.initializer]
    pending = [*proto.graph.node, *(node for function in proto.functions for node in function.node)]
    while pending:
        for attribute in pending.pop().attribute:
            tensors += [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]
            for graph in [attribute.g, *attribute.graphs]:
                tensors += graph.initializer
                pending += graph.node
    found: dict[str, int] = {}
    for tensor in tensors:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if not entries:
            continue
        place = entries.get("location", "")
        parts = PurePosixPath(place.replace("\\", "/"))
        if not place or parts.is_absolute() or ".." in parts.parts or ":" in place:
            raise BundleError(f"{path.name}: {tensor.name} points at {place!r}, outside the package; refused")
        end = _number(entries.get("offset", "0"), tensor.name) + _number(entries.get("length", "0"), tensor.name)
        found[parts.as_posix()] = max(found.get(parts.as_posix(), 0), end)
    for place, end in found.items():
        target = path.parent / place
        if not target.is_file():
            raise BundleError(f"{path.name}: its data file {place} is missing")
        if target.stat().st_size < end:
            raise BundleError(f"{path.name}: needs {end} bytes of {place}, which has {target.stat().st_size}")
    return tuple(sorted(found))


def _number(text: str, name: str) -> int:
    if not text.isdigit():
        raise BundleError(f"{name}: external data at {text!r}; expected a number of bytes")
    return int(text)
