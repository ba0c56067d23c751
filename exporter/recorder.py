"""Records the operators that a module calls, at several examples of its sizes at once.

``torch.export`` reasons about sizes symbolically, which is most of its time. Here every tensor is fake and stands for
one tensor per example; python sees the first, whose sizes are :class:`exporter.sizes.Size`, and each operator runs at
every example. What the examples agree on is the graph; where they don't, it is refused.
"""

from __future__ import annotations

import contextlib
import itertools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch._subclasses.schema_check_mode import SchemaCheckMode
from torch.export import graph_signature as signatures
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from exporter.sizes import Book, Size, UnsureError

__all__ = ["Program", "record"]

_aten = torch.ops.aten
_MARK = "_kvparity_traced"  # attribute of a tensor: its number; torch copies tensors that python refers to elsewhere
_numbers = itertools.count()
_ASKING = {
    _aten._local_scalar_dense.default,
    _aten.item.default,
    _aten.is_nonzero.default,
}  # torch answers for constants
_Layout = tuple[tuple[int, ...], tuple[int, ...]]
Kind = signatures.InputKind


@dataclass(frozen=True, eq=False)
class _Traced:
    """What a fake tensor stands for.

    Attributes:
        node: What computes it.
        layouts: Its (shape, strides) at each example.
        dtype: Its dtype.
    """

    node: fx.Node | None
    layouts: tuple[_Layout, ...]
    dtype: torch.dtype

    @property
    def key(self) -> tuple[Any, ...]:
        return self.layouts, self.dtype


@dataclass(frozen=True, eq=False)
class _Outcome:
    """What an operator returns for one kind of arguments.

    Attributes:
        layouts: Of each tensor, at each example.
        dtypes: Of each tensor.
        single: Whether it is a tensor, and no tuple of them.
        values: A tensor for each, that a node keeps for its type.
    """

    layouts: tuple[tuple[_Layout, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    single: bool
    values: tuple[Tensor, ...]


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
        """Nobody runs it."""


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
    recorder = _Recorder(Book(graph), len(examples), mode)
    parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    inputs = [
        *(recorder.take(Kind.PARAMETER, f"p_{name}", [tensor], name) for name, tensor in parameters.items()),
        *(recorder.take(Kind.BUFFER, f"b_{name}", [tensor], name) for name, tensor in buffers.items()),
        *(recorder.take(Kind.USER_INPUT, name, [each[name] for each in examples], None) for name in examples[0]),
    ]
    shapes = _Shapes(recorder)
    with mode, torch.no_grad(), _exporting(), _scopes(module, recorder.book), shapes, _recording(recorder):
        for name, tensor in examples[0].items():
            tensor.shape  # noqa: B018  (input sizes are the first nodes)
            assert name
        outputs = module(dict(examples[0]))
    nodes = [recorder.traced(tensor).node for tensor in outputs]
    graph.output(tuple(nodes))
    inputs[0:0] = recorder.lifted()
    made = [
        signatures.OutputSpec(signatures.OutputKind.USER_OUTPUT, signatures.TensorArgument(n.name), None) for n in nodes
    ]
    signature = signatures.ExportGraphSignature(inputs, made)
    return Program(graph, signature, parameters, buffers, recorder.constants, shapes)


class _Recorder(SchemaCheckMode):
    """Sees operators before torch decomposes them; torch lets only modes of its own do that, this one among them."""

    def __init__(self, book: Book, count: int, fakes: Any) -> None:
        TorchDispatchMode.__init__(self, torch._C.DispatchKey.PreDispatch)  # type: ignore[attr-defined]
        self.book, self._count, self._fakes = book, count, fakes
        self.constants: dict[str, Tensor] = {}
        self._seen: dict[Any, _Outcome] = {}
        self._marks: dict[int, _Traced] = {}

    def take(self, kind: Any, name: str, tensors: Sequence[Tensor], target: str | None) -> Any:
        """A placeholder for an input, a parameter or a buffer."""
        node = self.book.graph.placeholder(name.replace(".", "_"))
        layouts = tuple(map(_layout, tensors))
        mark = self._mark(node, tensors[0], layouts if len(layouts) > 1 else layouts * self._count)
        node.meta["val"] = self._value(mark.layouts, mark.dtype)
        persistent = True if kind is Kind.BUFFER else None
        return signatures.InputSpec(kind, signatures.TensorArgument(node.name), target, persistent)

    def lifted(self) -> list[Any]:
        """Placeholders' specs of the constants that were met."""
        kind = Kind.CONSTANT_TENSOR
        return [signatures.InputSpec(kind, signatures.TensorArgument(name), name) for name in self.constants]

    def traced(self, tensor: Tensor) -> _Traced:
        """What a tensor stands for.

        Raises:
            UnsureError: It was made where nobody saw it.
        """
        found = self._find(tensor)
        if found is None:
            if type(tensor) is not Tensor:
                raise UnsureError(f"a tensor of {tuple(tensor.shape)} comes from nowhere")
            graph = self.book.graph
            with graph.inserting_before(next(iter(graph.nodes))):
                node = graph.placeholder(f"lifted_tensor_{len(self.constants)}")
            self.constants[node.name] = tensor
            found = self._mark(node, tensor, (_layout(tensor),) * self._count)
            node.meta["val"] = self._value(found.layouts, found.dtype)
        return found

    def sizes(self, tensor: Tensor) -> tuple[Any, ...] | None:
        """The sizes of a traced tensor, None where it isn't one."""
        found = self._find(tensor)
        if found is None:
            return None
        columns = enumerate(zip(*(shape for shape, _ in found.layouts), strict=True))
        return tuple(self.book.size(values, found.node, axis) for axis, values in columns)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator at every example and note it down."""
        kwargs = kwargs or {}
        if func in _ASKING:
            return func(*args)
        if func is _aten.lift_fresh.default:
            func = _aten.lift_fresh_copy.default
        node_args, node_kwargs = _map((args, kwargs), self._argument)
        node = self.book.graph.call_function(func, node_args, node_kwargs)
        node.meta["nn_module_stack"] = self.book.scope
        with torch._C.DisableTorchFunction(), torch._C._DisablePythonDispatcher():  # type: ignore[attr-defined]
            key = None if func._schema.is_mutable else (func, self._key((args, kwargs)))
            outcome = self._seen.get(key)
            if outcome is not None:
                with unset_fake_temporarily():
                    results = [self._fake(*each) for each in zip(outcome.layouts, outcome.dtypes, strict=True)]
            else:
                mine, named = _map((args, kwargs), _first)
                returned = func(*mine, **named)
                results = _tensors(func, returned)
                outcome = self._outcome(func, returned, results, args, kwargs)
                if key is not None and not any(result is arg for result in results for arg in args):
                    self._seen[key] = outcome
        self._note(node, outcome, results)
        return results[0] if outcome.single else results

    def _fake(self, layouts: tuple[_Layout, ...], dtype: torch.dtype) -> Tensor:
        shape, strides = layouts[0]
        elements = torch.empty_strided(shape, strides, dtype=dtype, device="meta")
        return cast(Tensor, FakeTensor(self._fakes, elements, torch.device("cpu")))

    def _outcome(self, func: Any, returned: Any, results: list[Tensor], args: Any, kwargs: Any) -> _Outcome:
        """Run the operator at the other examples, on tensors without elements."""
        columns = [[_layout(each) for each in results]]
        with unset_fake_temporarily():
            for example in range(1, self._count):
                mine, named = _map((args, kwargs), lambda leaf, at=example: self._at(leaf, at))
                columns.append([_layout(each) for each in _tensors(func, func(*mine, **named))])
            if len({len(column) for column in columns}) > 1:
                raise UnsureError(f"{func} returns as many tensors as a size says")
            layouts = tuple(zip(*columns, strict=True))
            dtypes = tuple(each.dtype for each in results)
            values = tuple(map(self._value, layouts, dtypes))
        return _Outcome(layouts, dtypes, isinstance(returned, Tensor), values)

    def _argument(self, leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return self.traced(leaf).node
        if type(leaf) is int and self.book.leaks(leaf):
            raise UnsureError(f"{leaf} is an example's size")
        return leaf.node.argument if isinstance(leaf, (torch.SymInt, torch.SymBool)) else leaf

    def _at(self, leaf: Any, example: int) -> Any:
        """An argument at one of the other examples."""
        if isinstance(leaf, Tensor):
            mark = self.traced(leaf)
            shape, strides = mark.layouts[example]
            return torch.empty_strided(shape, strides, dtype=mark.dtype, device="meta")
        if isinstance(leaf, torch.device):
            return torch.device("meta")
        return leaf.node.values[example] if isinstance(leaf, (torch.SymInt, torch.SymBool)) else leaf

    def _key(self, value: Any) -> Any:
        """Equal for arguments that give tensors of equal layout; a constant's value is kept by its own tensor only."""
        if isinstance(value, (tuple, list)):
            return tuple(map(self._key, value))
        if isinstance(value, dict):
            return tuple((name, self._key(each)) for name, each in value.items())
        if isinstance(value, Tensor):
            constant = not isinstance(value, FakeTensor) or value.constant is not None
            return object() if constant else self.traced(value).key
        return value.node.values if isinstance(value, (torch.SymInt, torch.SymBool)) else (type(value), value)

    def _note(self, node: fx.Node, outcome: _Outcome, results: list[Tensor]) -> None:
        """Remember what an operator returned; parts of a tuple are nodes of their own."""
        node.meta["val"] = outcome.values[0] if outcome.single else outcome.values
        for place, result in enumerate(results):
            part = node
            if not outcome.single:
                part = self.book.graph.call_function(operator.getitem, (node, place))
                part.meta = {"val": outcome.values[place], "nn_module_stack": self.book.scope}
            self._mark(part, result, outcome.layouts[place])

    def _value(self, layouts: tuple[_Layout, ...], dtype: torch.dtype) -> Tensor:
        """What a node keeps to say its type: a tensor without elements."""
        made = torch.empty(layouts[0][0], dtype=dtype, device="meta")
        self._mark(None, made, layouts)
        return made

    def _mark(self, node: fx.Node | None, tensor: Tensor, layouts: tuple[_Layout, ...]) -> _Traced:
        number = vars(tensor)[_MARK] = next(_numbers)
        mark = self._marks[number] = _Traced(node, layouts, tensor.dtype)
        return mark

    def _find(self, tensor: Tensor) -> _Traced | None:
        return self._marks.get(vars(tensor).get(_MARK, -1))


def _tensors(func: Any, returned: Any) -> list[Tensor]:
    results = (
        [returned] if isinstance(returned, Tensor) else list(returned) if isinstance(returned, (tuple, list)) else []
    )
    if not results or not all(isinstance(result, Tensor) for result in results):
        raise UnsureError(f"{func} returns {type(returned).__name__}")
    return results


def _layout(tensor: Tensor) -> _Layout:
    with torch._C.DisableTorchFunction():
        return tuple(tensor.shape), tensor.stride()


def _first(leaf: Any) -> Any:
    return leaf.node.values[0] if isinstance(leaf, (torch.SymInt, torch.SymBool)) else leaf


class _Shapes(TorchFunctionMode):
    """Gives python the sizes of traced tensors."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder
        tensor = Tensor
        self._own: dict[Any, Callable[..., Any]] = {
            tensor.shape.__get__: self._shape,  # type: ignore[attr-defined]
            tensor.size: self._size,
            tensor.numel: self._count,
            tensor.nelement: self._count,
            tensor.__len__: lambda x: self._size(x, 0),
            tensor.__getitem__: _index,
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Intercept one torch call; see :class:`torch.overrides.TorchFunctionMode`."""
        own = self._own.get(func)
        return func(*args, **(kwargs or {})) if own is None else own(*args, **(kwargs or {}))

    def _shape(self, tensor: Tensor) -> Any:
        sizes = self._recorder.sizes(tensor)
        return _shape(tensor) if sizes is None else torch.Size(sizes)

    def _size(self, tensor: Tensor, dim: int | None = None) -> Any:
        return self._shape(tensor) if dim is None else self._shape(tensor)[dim]

    def _count(self, tensor: Tensor) -> Any:
        total: Any = 1
        for size in self._shape(tensor):
            total = total * size
        return total


def _shape(tensor: Tensor) -> Any:
    with torch._C.DisableTorchFunction():
        return tensor.shape


def _index(tensor: Tensor, index: Any) -> Any:
    """``tensor[index]``; with sizes in it, spelled out, because torch would compare them with the example's."""
    items = list(index) if isinstance(index, tuple) else [index]
    if not _has_size([(i.start, i.stop, i.step) if isinstance(i, slice) else i for i in items]):
        return Tensor.__getitem__(tensor, index)
    if Ellipsis in [item for item in items if not isinstance(item, (Tensor, torch.SymInt))]:
        at = next(place for place, item in enumerate(items) if item is Ellipsis)
        named = sum(item is not None for item in items) - 1
        items[at : at + 1] = [slice(None)] * (tensor.ndim - named)
    axis = 0
    for item in items:
        if item is None:
            tensor = tensor.unsqueeze(axis)
        elif isinstance(item, slice):
            if not (item.start is None and item.stop is None and item.step is None):
                tensor = _aten.slice.Tensor(tensor, axis, item.start, item.stop, 1 if item.step is None else item.step)
        elif isinstance(item, (int, torch.SymInt)):
            tensor = tensor.select(axis, item)
            continue
        else:
            raise UnsureError("an index mixes sizes and tensors")
        axis += 1
    return tensor


def _map(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same tuples, lists and dicts with every leaf changed."""
    if isinstance(value, (tuple, list)):
        return type(value)([_map(each, change) for each in value]) if type(value) in (tuple, list) else value
    if isinstance(value, dict):
        return {key: _map(each, change) for key, each in value.items()}
    return change(value)


def _has_size(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(map(_has_size, value))
    if isinstance(value, dict):
        return any(map(_has_size, value.values()))
    return isinstance(value, (torch.SymInt, torch.SymBool))


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
def _recording(recorder: _Recorder) -> Iterator[None]:
    from torch._dispatch.python import enable_python_dispatcher

    with enable_python_dispatcher(), recorder:
        yield


@contextlib.contextmanager
def _scopes(module: nn.Module, book: Book) -> Iterator[None]:
    """Name the module that each node comes from."""
    stack: list[dict[str, tuple[str, str]]] = []

    def enter(path: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            stack.append(book.scope)
            book.scope = {**book.scope, path: (path, "")}

        return hook

    def leave(*_: Any) -> None:
        book.scope = stack.pop()

    handles = []
    for path, each in module.named_modules():
        handles.append(each.register_forward_pre_hook(enter(path), prepend=True))
        handles.append(each.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
