"""Traces a module at several examples of its sizes at once, instead of with symbolic sizes.

``torch.export`` reasons about sizes, which is most of its time. Here python runs once, on sizes that are
:class:`~exporter.trace.record.sizes.Size`, and each operator at every example (``recorder.py``). What they agree on
is the graph; where they don't, it is refused, and the caller asks ``torch.export``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import graph_signature as signatures
from torch.overrides import TorchFunctionMode

from kvparity.exporter.trace.record.recorder import Recorder
from kvparity.exporter.trace.record.shapes import Shapes
from kvparity.exporter.trace.record.sizes import SymbolicSizes

__all__ = ["Program", "record"]

Kind = signatures.InputKind


@dataclass
class Program:
    """What translation reads of a ``torch.export.ExportedProgram``."""

    graph: fx.Graph
    graph_signature: signatures.ExportGraphSignature
    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    constants: dict[str, Tensor]
    shapes: TorchFunctionMode
    range_constraints: dict[Any, Any] = field(default_factory=dict)

    @property
    def graph_module(self) -> Program:
        """Itself: there is one graph."""
        return self

    def named_modules(self, remove_duplicate: bool = True) -> list[tuple[str, Program]]:
        """The one graph, without a name."""
        return [("", self)]

    def named_parameters(self) -> Sequence[tuple[str, Tensor]]:
        """By name in the traced module."""
        return list(self.parameters.items())

    def named_buffers(self) -> Sequence[tuple[str, Tensor]]:
        """By name in the traced module."""
        return list(self.buffers.items())

    def recompile(self) -> None:
        """Nothing to do: the program is translated and not run."""


def record(module: nn.Module, examples: Sequence[Mapping[str, Tensor]], mode: Any) -> Program:
    """Trace a module whose forward takes a dict of tensors and returns a list of them.

    Args:
        module: On fake weights of ``mode``.
        examples: Inputs by name, fake, at different sizes.
        mode: The fake mode.

    Raises:
        UnsureError: The graph would be right for these sizes only.
    """
    graph = fx.Graph()
    recorder = Recorder(SymbolicSizes(graph), len(examples), mode)
    parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    inputs = [
        *(recorder.take(Kind.PARAMETER, f"p_{name}", [tensor], name) for name, tensor in parameters.items()),
        *(recorder.take(Kind.BUFFER, f"b_{name}", [tensor], name) for name, tensor in buffers.items()),
        *(recorder.take(Kind.USER_INPUT, name, [each[name] for each in examples], None) for name in examples[0]),
    ]
    shapes = Shapes(recorder.sizes)
    with mode, torch.no_grad(), _exporting(), _scopes(module, recorder.symbolic), shapes, _recording(recorder):
        for tensor in examples[0].values():
            tensor.size()  # sizes of inputs are the first nodes
        outputs = module(dict(examples[0]))
    nodes = [recorder.traced(tensor).node for tensor in outputs]
    graph.output(tuple(nodes))
    inputs[0:0] = recorder.lifted()
    kind = signatures.OutputKind.USER_OUTPUT
    made = [signatures.OutputSpec(kind, signatures.TensorArgument(str(node)), None) for node in nodes]
    signature = signatures.ExportGraphSignature(inputs, made)
    return Program(graph, signature, parameters, buffers, recorder.constants, shapes)


@contextlib.contextmanager
def _exporting() -> Iterator[None]:
    """Models ask whether they are being exported."""
    flags = torch.compiler._is_compiling_flag, torch.compiler._is_exporting_flag
    torch.compiler._is_compiling_flag = torch.compiler._is_exporting_flag = True
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag, torch.compiler._is_exporting_flag = flags


@contextlib.contextmanager
def _recording(recorder: Recorder) -> Iterator[None]:
    from torch._dispatch.python import enable_python_dispatcher

    with enable_python_dispatcher(), recorder:
        yield


@contextlib.contextmanager
def _scopes(module: nn.Module, symbolic: SymbolicSizes) -> Iterator[None]:
    """Name the module that each node comes from."""
    stack: list[dict[str, tuple[str, str]]] = []

    def enter(path: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            stack.append(symbolic.scope)
            symbolic.scope = {**symbolic.scope, path: (path, "")}

        return hook

    def leave(*_: Any) -> None:
        symbolic.scope = stack.pop()

    handles = []
    for path, each in module.named_modules():
        handles.append(each.register_forward_pre_hook(enter(path), prepend=True))
        handles.append(each.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
