"""What engines that are reached through PyTorch share: an ONNX graph of fixed shapes as a module that torch can trace.

The converters to PyTorch read sizes and indices from tensors while they run, which torch.export can't follow; here
they are numbers from the start. The table below is all that the static layout's graphs use.
"""

from __future__ import annotations

import importlib.util
import operator
import sys
from collections.abc import Callable, Mapping
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from kvparity.exporter.contract.bundle import Bundle, GraphEntry
from kvparity.exporter.contract.errors import EngineUnavailableError
from kvparity.exporter.contract.graph_file import load_whole_graph
from kvparity.runners.base import Array, RunnerInfo
from kvparity.runners.engines._session import GraphSession, Run, by_name

__all__ = ["converted_session", "stand_in_for_torchvision", "torch_module"]


def converted_session(
    bundle: Bundle, info: RunnerInfo, threads: int, convert: Callable[[Path], Any], adapted: str
) -> GraphSession:
    """A session on graphs that a converter made into PyTorch modules with positional inputs.

    Args:
        bundle: The bundle.
        info: The converter; its settings gain ``threads``.
        threads: Of PyTorch; 0 leaves its own choice.
        convert: Makes the module of a graph's file.
        adapted: What the converter did to the graph.

    Raises:
        EngineUnavailableError: A graph cannot be converted.
    """
    import torch

    if threads:
        torch.set_num_threads(threads)

    def load(path: Path, entry: GraphEntry) -> Run:
        model = convert(path).eval()

        def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
            feeds = [torch.from_numpy(np.array(inputs[port.name])) for port in entry.spec.inputs]
            with torch.no_grad():
                return by_name(entry, [value.numpy() for value in model(*feeds)])

        return run

    settings = {**info.settings, "threads": str(torch.get_num_threads())}
    return GraphSession(bundle, RunnerInfo(info.name, info.version, settings, adapted), load)


class _StandIn(ModuleType):
    """A module that has every name; using one fails."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


def stand_in_for_torchvision() -> None:
    """Converters import torchvision for operators of image models; where it is absent, an empty module stands in."""
    if importlib.util.find_spec("torchvision") is None:
        for name in ("torchvision", "torchvision.ops", "torchvision.io"):
            sys.modules[name] = _StandIn(name)


def torch_module(path: Path) -> Any:
    """A graph of fixed shapes as a ``torch.nn.Module``: positional inputs, a tuple of outputs, both in graph order.

    Raises:
        EngineUnavailableError: The graph has an operator that the static layout does not use.
    """
    import onnx
    import torch
    from onnx import numpy_helper

    graph = load_whole_graph(path).graph
    table = _table(torch)
    if unknown := sorted({node.op_type for node in graph.node} - table.keys()):
        raise EngineUnavailableError(f"{path.name}: no translation to torch of {', '.join(unknown)}")
    constants = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    steps = [(table[node.op_type], list(node.input), node.output[0], _attributes(onnx, node)) for node in graph.node]
    given, wanted = [value.name for value in graph.input], [value.name for value in graph.output]

    class Graph(torch.nn.Module):
        def forward(self, *inputs: Any) -> tuple[Any, ...]:
            values = {**constants, **dict(zip(given, inputs, strict=True))}
            for compute, names, output, attributes in steps:
                values[output] = compute(*(values[name] for name in names), **attributes)
            return tuple(values[name] for name in wanted)

    return Graph().eval()


def _attributes(onnx: Any, node: Any) -> dict[str, Any]:
    return {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}


def _table(torch: Any) -> dict[str, Callable[..., Any]]:
    """What each operator is in torch."""
    dtypes = {1: torch.float32, 7: torch.int64, 9: torch.bool, 6: torch.int32}
    plain = {
        **{name: getattr(operator, name.lower()) for name in ("Add", "Sub", "Mul", "Neg", "MatMul")},
        "Div": operator.truediv,
        "Equal": operator.eq,
        "Greater": operator.gt,
        "GreaterOrEqual": operator.ge,
        "Less": operator.lt,
        "LessOrEqual": operator.le,
        **{name: getattr(torch, name.lower()) for name in ("Cos", "Sin", "Sqrt", "Tanh", "Reciprocal", "Sigmoid")},
        "And": torch.logical_and,
        "Not": torch.logical_not,
        "Where": torch.where,
        "Max": lambda *items: reduce(torch.maximum, items),
        "Min": lambda *items: reduce(torch.minimum, items),
    }
    return {
        **plain,
        "Cast": lambda x, to: x.to(dtypes[to]),
        "Concat": lambda *items, axis: torch.cat(items, axis),
        "Expand": lambda x, shape: _repeat(torch, x, torch.broadcast_shapes(x.shape, shape.tolist())),
        "Gather": _gather,
        "Identity": lambda x: x,
        "Mod": lambda a, b, fmod=0: torch.remainder(a, b),
        "ReduceMax": lambda x, axes, keepdims=1: x.amax(axes.tolist(), bool(keepdims)),
        "ReduceMean": lambda x, axes, keepdims=1, noop_with_empty_axes=0: x.mean(axes.tolist(), bool(keepdims)),
        "Reshape": _reshape,
        "Slice": _slice,
        "Softmax": lambda x, axis: torch.softmax(x, axis),
        "Transpose": lambda x, perm: x.permute(list(perm)),
        "Unsqueeze": lambda x, axes: reduce(lambda y, axis: y.unsqueeze(axis), axes.tolist(), x),
    }


def _repeat(torch: Any, x: Any, shape: Any) -> Any:
    """Copies joined, because litert-torch 0.10.0 loses the head axis of an expanded key that is transposed."""
    x = x.reshape((1,) * (len(shape) - x.ndim) + tuple(x.shape))
    for axis, (size, wanted) in enumerate(zip(x.shape, shape, strict=True)):
        x = torch.cat([x] * wanted, axis) if size != wanted else x
    return x


def _gather(data: Any, indices: Any, axis: int = 0) -> Any:
    shape = (*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])
    return data.index_select(axis, indices.reshape((-1,))).reshape(shape)


def _reshape(x: Any, shape: Any, allowzero: int = 0) -> Any:
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape.tolist())])


def _slice(x: Any, starts: Any, ends: Any, axes: Any, steps: Any) -> Any:
    for start, end, axis, step in zip(starts.tolist(), ends.tolist(), axes.tolist(), steps.tolist(), strict=True):
        size = x.shape[axis]
        first, last = (min(max(n + size if n < 0 else n, 0), size) for n in (start, end))
        x = x[(slice(None),) * (axis % x.ndim) + (slice(first, last, step),)]
    return x
