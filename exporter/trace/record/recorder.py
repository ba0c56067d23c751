"""Recorder: intercepts the operators that a module calls, runs each at every example, and adds it to a graph.

A tensor that python holds is fake and stands for one tensor per example. Operators run again only for arguments of
layouts that were not met before: layers repeat.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch._subclasses.schema_check_mode import SchemaCheckMode
from torch.export import graph_signature as signatures
from torch.utils._python_dispatch import TorchDispatchMode

from kvparity.exporter.trace.in_place_operators import UnsupportedError, is_view, out_of_place, plain_operator
from kvparity.exporter.trace.record.private_names import MARK
from kvparity.exporter.trace.record.sizes import SymbolicSizes, UnsureError

__all__ = ["Recorder"]

_aten = torch.ops.aten
_numbers = itertools.count()
_ASKING = {_aten._local_scalar_dense.default, _aten.item.default, _aten.is_nonzero.default}  # answered for constants
_Layout = tuple[tuple[int, ...], tuple[int, ...]]
_Part = tuple[int, int, fx.Node | None]  # first, past the last, what was written there
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
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Its shape at each example."""
        return tuple(shape for shape, _ in self.layouts)

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


class Recorder(SchemaCheckMode):
    """Sees operators before torch decomposes them; torch lets only modes of its own do that, this one among them."""

    def __init__(self, symbolic: SymbolicSizes, count: int, fakes: Any) -> None:
        TorchDispatchMode.__init__(self, torch._C.DispatchKey.PreDispatch)
        self.symbolic, self._count, self._fakes = symbolic, count, fakes
        self.constants: dict[str, Tensor] = {}
        self._seen: dict[Any, _Outcome] = {}
        self._marks: dict[int, _Traced] = {}
        self._joined: dict[fx.Node | None, fx.Node] = {}  # what took the place of a tensor when a part was written
        self._parts: dict[fx.Node, tuple[fx.Node, tuple[_Part, ...]]] = {}  # of these: the tensor, and its parts

    def take(self, kind: Any, name: str, tensors: Sequence[Tensor], target: str | None) -> Any:
        """A placeholder for an input, a parameter or a buffer."""
        node = self.symbolic.graph.placeholder(name.replace(".", "_"))
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
            graph = self.symbolic.graph
            with graph.inserting_before(next(iter(graph.nodes))):
                node = graph.placeholder(f"lifted_tensor_{len(self.constants)}")
            self.constants[node.name] = tensor
            found = self._mark(node, tensor, (_layout(tensor),) * self._count)
            node.meta["val"] = self._value(found.layouts, found.dtype)
        joined = self._joined.get(found.node)
        return found if joined is None else replace(found, node=joined)

    def sizes(self, tensor: Tensor) -> tuple[Any, ...] | None:
        """The sizes of a traced tensor, None where it isn't one."""
        found = self._find(tensor)
        if found is None:
            return None
        columns = enumerate(zip(*(shape for shape, _ in found.layouts), strict=True))
        return tuple(self.symbolic.size(values, found.node, axis) for axis, values in columns)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator at every example and note it down."""
        kwargs = kwargs or {}
        if func in _ASKING:
            return func(*args)
        if func is _aten.detach_.default:
            return args[0]
        if func._schema.is_mutable:
            return self._write(func, args, kwargs)
        if func is _aten.lift_fresh.default:
            func = _aten.lift_fresh_copy.default
        node_args, node_kwargs = _map((args, kwargs), self._argument)
        node = self.symbolic.graph.call_function(func, node_args, node_kwargs)
        node.meta["nn_module_stack"] = self.symbolic.scope
        with torch._C.DisableTorchFunction(), torch._C._DisablePythonDispatcher():
            key = func, self._key((args, kwargs))
            outcome = self._seen.get(key)
            if outcome is not None:
                with unset_fake_temporarily():
                    results = [self._fake(*each) for each in zip(outcome.layouts, outcome.dtypes, strict=True)]
            else:
                mine, named = _map((args, kwargs), _first)
                returned = func(*mine, **named)
                results = _tensors(func, returned)
                outcome = self._outcome(func, returned, results, args, kwargs)
                if not any(result is arg for result in results for arg in args):
                    self._seen[key] = outcome
        self._note(node, outcome, results)
        return results[0] if outcome.single else results

    def _write(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        """Note down an operator that writes into its first argument, which from now on is what the node returns.

        Raises:
            UnsupportedError: Somebody else may see what is written, through a view.
        """
        found = self.traced(args[0])
        part = found.node if found.node is not None and found.node.target is _aten.slice.Tensor else None
        plain = out_of_place(func, found.node) if part is None else plain_operator(func)
        if plain is _aten.copy.default:
            source = self.traced(args[1])
            node = self._argument(args[1])
            if source.shapes != found.shapes or source.dtype != found.dtype:
                raise UnsupportedError(f"{func} writes what is not of the same shape and type")
        else:
            node = self.symbolic.graph.call_function(plain, *_map((args, kwargs), self._argument))
            node.meta = {"val": self._value(found.layouts, found.dtype), "nn_module_stack": self.symbolic.scope}
        self._mark(node, args[0], found.layouts)
        if part is not None:
            self._fill(part, node)
        return cast(Tensor, args[0])

    def _fill(self, part: fx.Node, written: fx.Node) -> None:
        """Note down that a slice of a tensor is written: from then on the tensor is its parts joined.

        Raises:
            UnsupportedError: It is seen through another view, or parts overlap.
        """
        whole, dim, start, stop = cast(tuple[fx.Node, int, int, int], part.args[:4])
        size = self.traced(whole.meta["val"]).shapes[0][dim]
        seen = is_view(whole) or any(is_view(user, whole) for user in whole.users if user is not part)
        if seen or any(shape[dim] != size for shape in self.traced(whole.meta["val"]).shapes):
            raise UnsupportedError("a part of a tensor that is seen in another way, or of any length, is written")
        stop = min(stop, size)
        root, parts = self._parts.get(whole, (whole, ((0, size, None),)))
        around = next((each for each in parts if each[0] <= start and stop <= each[1]), None)
        if around is None or (around[2] is not None and around[:2] != (start, stop)):
            raise UnsupportedError("parts of a tensor that overlap are written")
        split = ((around[0], start, None), (start, stop, written), (stop, around[1], None))
        place = parts.index(around)
        parts = (*parts[:place], *(each for each in split if each[0] < each[1]), *parts[place + 1 :])
        call = self.symbolic.graph.call_function
        nodes = [node or call(_aten.slice.Tensor, (root, dim, first, last)) for first, last, node in parts]
        for node, (first, last, _) in zip(nodes, parts, strict=True):
            node.meta = node.meta or {**whole.meta, "val": whole.meta["val"].narrow(dim, first, last - first)}
        joined = call(_aten.cat.default, (nodes, dim))
        joined.meta = dict(whole.meta)
        self._parts[joined] = root, parts
        self._joined[root] = joined

    def _fake(self, layouts: tuple[_Layout, ...], dtype: torch.dtype) -> Tensor:
        shape, strides = layouts[0]
        elements = torch.empty_strided(shape, strides, dtype=dtype, device="meta")
        return cast(Tensor, FakeTensor(self._fakes, elements, torch.device("cpu")))

    def _outcome(self, func: Any, returned: Any, results: list[Tensor], args: Any, kwargs: Any) -> _Outcome:
        """Run the operator at the other examples, on tensors without elements."""
        columns = [[_layout(each) for each in results]]
        with unset_fake_temporarily():
            for example in range(1, self._count):
                mine, named = _map((args, kwargs), partial(self._at, example=example))
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
        if type(leaf) is int and self.symbolic.leaks(leaf):
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
                part = self.symbolic.graph.call_function(operator.getitem, (node, place))
                part.meta = {"val": outcome.values[place], "nn_module_stack": self.symbolic.scope}
            self._mark(part, result, outcome.layouts[place])

    def _value(self, layouts: tuple[_Layout, ...], dtype: torch.dtype) -> Tensor:
        """What a node keeps to say its type: a tensor without elements."""
        made = torch.empty(layouts[0][0], dtype=dtype, device="meta")
        self._mark(None, made, layouts)
        return made

    def _mark(self, node: fx.Node | None, tensor: Tensor, layouts: tuple[_Layout, ...]) -> _Traced:
        number = vars(tensor)[MARK] = next(_numbers)
        mark = self._marks[number] = _Traced(node, layouts, tensor.dtype)
        return mark

    def _find(self, tensor: Tensor) -> _Traced | None:
        return self._marks.get(vars(tensor).get(MARK, -1))


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


def _map(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same tuples, lists and dicts with every leaf changed."""
    if isinstance(value, (tuple, list)):
        return type(value)([_map(each, change) for each in value]) if type(value) in (tuple, list) else value
    if isinstance(value, dict):
        return {key: _map(each, change) for key, each in value.items()}
    return change(value)
