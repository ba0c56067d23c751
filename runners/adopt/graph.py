"""Reads a foreign graph as untrusted data: its ports, operators and the files that it points at; runs nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath
from typing import Any

from kvparity.exporter.contract.errors import BundleError
from kvparity.exporter.contract.spec import Port
from kvparity.runners.adopt.package import check_links

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
        rounds: Whether products round activations to 8 bits: MatMulNBits of accuracy level 4, dynamic quantisation.
        buffers: Ports of caches whose attention drops rows itself, in a buffer as long as its window: port to rows.
    """

    path: Path
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    opset: dict[str, int]
    ir_version: int
    data_files: tuple[str, ...]
    operators: dict[str, int]
    buffers: dict[str, int]
    rounds: bool


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
    check_links(path, root)
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
    files, buffers = _data_files(proto, path, root), _buffers(proto)
    rounds = any(key.endswith(".DynamicQuantizeLinear") for key in operators) or any(
        node.op_type == "MatMulNBits" and item.name == "accuracy_level" and item.i == 4
        for node in proto.graph.node
        for item in node.attribute
    )
    return GraphFile(path, inputs, outputs, opset, int(proto.ir_version), files, operators, buffers, rounds)


def _buffers(proto: Any) -> dict[str, int]:
    """Past and present of every GroupQueryAttention with ``sliding_window_cache``; the shortest buffer it takes."""
    found: dict[str, int] = {}
    for node in proto.graph.node:
        numbers = {attribute.name: attribute.i for attribute in node.attribute}
        if node.op_type == "GroupQueryAttention" and numbers.get("sliding_window_cache"):
            ports = [*node.input[3:5], *node.output[1:3]]
            found |= dict.fromkeys(ports, max(1, numbers.get("local_window_size", 1)))
    return found


def _operators(proto: Any, name: str) -> dict[str, int]:
    """Operator names with their domain, ``com.microsoft.MatMulNBits``; plain ones begin with a dot."""
    counts: dict[str, int] = {}
    bodies: dict[tuple[str, ...], list[Any]] = {(): list(_nodes(proto.graph.node))}
    bodies |= {(item.domain, item.name, item.overload): list(_nodes(item.node)) for item in proto.functions}
    _check_size(bodies, name)
    for node in (node for body in bodies.values() for node in body):
        key = f"{node.domain if node.domain != 'ai.onnx' else ''}.{node.op_type}"
        counts[key] = counts.get(key, 0) + 1
    return counts


def _nodes(nodes: Iterable[Any]) -> Iterator[Any]:
    """Nodes and those of their subgraphs."""
    pending = list(nodes)
    while pending:
        node = pending.pop()
        yield node
        for attribute in node.attribute:
            pending += [*attribute.g.node, *(item for graph in attribute.graphs for item in graph.node)]


def _check_size(bodies: dict[tuple[str, ...], list[Any]], name: str) -> None:
    """Refuse functions that call each other in a circle, and graphs that have too many nodes once they are inlined."""
    calls = {
        key: [called for node in body if (called := (node.domain, node.op_type, node.overload)) in bodies]
        for key, body in bodies.items()
    }
    sizes: dict[tuple[str, ...], int] = {}
    try:
        for key in TopologicalSorter(calls).static_order():
            sizes[key] = len(bodies[key]) + sum(sizes[called] for called in calls[key])
    except CycleError:
        raise BundleError(f"{name}: its functions call each other in a circle") from None
    if max(sizes.values()) > _MOST_NODES:
        raise BundleError(f"{name}: has more than {_MOST_NODES:,} nodes; not a decoder that is judged here")


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
    graphs, tensors = [proto.graph], []
    for node in _nodes([*proto.graph.node, *(node for function in proto.functions for node in function.node)]):
        for attribute in node.attribute:
            graphs += [attribute.g, *attribute.graphs]
            sparse = [attribute.sparse_tensor, *attribute.sparse_tensors]
            tensors += [attribute.t, *attribute.tensors, *(part for item in sparse for part in _parts(item))]
    for graph in graphs:
        tensors += [*graph.initializer, *(part for item in graph.sparse_initializer for part in _parts(item))]
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
        check_links(target, root)
        if not target.is_file():
            raise BundleError(f"{path.name}: its data file {place} is missing")
        if target.stat().st_size < end:
            raise BundleError(f"{path.name}: needs {end} bytes of {place}, which has {target.stat().st_size}")
    return tuple(sorted(found))


def _parts(sparse: Any) -> tuple[Any, Any]:
    return sparse.values, sparse.indices


def _number(text: str, name: str) -> int:
    if not text.isdigit():
        raise BundleError(f"{name}: external data at {text!r}; expected a number of bytes")
    return int(text)
