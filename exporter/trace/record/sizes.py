"""Sizes while tracing: each is known at several examples at once, and by the node of the graph that computes it.

Two sizes with equal numbers at every example are one size: the examples are primes, so that no other sum or product of
sizes is equal by chance, and one of them is small, so that a clamp shows. A decision that is not the same at every
example, and a size that is asked to be a plain number, is refused (:class:`UnsureError`): the graph would be right for
the examples only.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

__all__ = ["Size", "SymbolicSizes", "UnsureError"]

Values = tuple[Any, ...]
_SMALL = 256  # numbers up to here are in every model; sizes of the first example are larger


class UnsureError(Exception):
    """What is traced depends on the examples' sizes."""


class SymbolicSizes:
    """Every size that a trace has met.

    Attributes:
        graph: Where sizes are computed.
        scope: What nodes carry as their module stack.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.scope: dict[str, tuple[str, str]] = {}
        self._nodes: dict[Values, fx.Node] = {}
        self._names: dict[Values, str] = {}
        self._firsts: set[int] = set()

    def size(self, values: Values, tensor: fx.Node | None, axis: int) -> Any:
        """The size of a traced tensor: an int where it is the same at every example; only a name without a node."""
        if _same(values):
            return values[0]
        if tensor is not None and values not in self._nodes:
            self._add(values, torch.ops.aten.sym_size.int, (tensor, axis))
        return torch.SymInt(Size(self, values))

    def apply(self, target: Callable[..., Any], *operands: Size) -> Size:
        """The size that an operator makes of others; its node is made once."""
        plain = _PLAIN.get(target, target)
        values = tuple(plain(*numbers) for numbers in zip(*(operand.values for operand in operands), strict=True))
        if target in _UNEVEN:
            _check_shown(target, values, operands)
        if not _same(values) and values not in self._nodes and not isinstance(values[0], bool):
            self._add(values, target, tuple(operand.argument for operand in operands))
        return Size(self, values)

    def leaks(self, number: int) -> bool:
        """Whether a plain number is the first example's value of some size: then somebody lost the size."""
        return number > _SMALL and number in self._firsts

    def argument(self, values: Values) -> Any:
        """A size as an argument of a node."""
        return values[0] if _same(values) else self._nodes[values]

    def name(self, values: Values) -> str:
        """The name of a dimension of that size."""
        return self._names.setdefault(values, f"s{len(self._names)}")

    def _add(self, values: Values, target: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        node = self.graph.call_function(target, arguments)
        node.meta = {"val": values[0], "nn_module_stack": self.scope}
        self._firsts.add(values[0])
        self._nodes[values] = node


_PLAIN: dict[Callable[..., Any], Callable[..., Any]] = {torch.sym_max: max, torch.sym_min: min}
_UNEVEN = {torch.sym_max, torch.sym_min, operator.floordiv, operator.mod}


def _check_shown(target: Callable[..., Any], values: Values, operands: tuple[Size, ...]) -> None:
    """A clamp that no example needs, or a rest that all have, would be taken for something simpler."""
    one, other = (operand.values for operand in operands)
    if (_same(one) and _same(other)) or (target is operator.floordiv and set(other) == {1}):
        return
    if _same(values) or values in (one, other):
        raise UnsureError(f"no example shows what {target.__name__} of {one} and {other} is for")


def _same(values: Values) -> bool:
    return all(value == values[0] for value in values)


def _unary(target: Callable[..., Any]) -> Callable[[Size], Size]:
    return lambda self: self.symbolic.apply(target, self)


def _binary(target: Callable[..., Any]) -> Callable[[Size, Size], Size]:
    return lambda self, other: self.symbolic.apply(target, self, other)


class Size:
    """The node of a ``torch.SymInt`` or ``SymBool``, as torch asks for it from Python and from C++."""

    __slots__ = ("symbolic", "values")

    def __init__(self, symbolic: SymbolicSizes, values: Values) -> None:
        self.symbolic, self.values = symbolic, values

    def __str__(self) -> str:
        return str(self.values[0]) if _same(self.values) else self.symbolic.name(self.values)

    @property
    def argument(self) -> Any:
        """This size as an argument of a node."""
        return self.symbolic.argument(self.values)

    add, sub, mul, mod = (_binary(f) for f in (operator.add, operator.sub, operator.mul, operator.mod))
    floordiv = int_floordiv = _binary(operator.floordiv)
    sym_max, sym_min, neg = _binary(torch.sym_max), _binary(torch.sym_min), _unary(operator.neg)
    eq, ne, lt, le, gt, ge = (
        _binary(f) for f in (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge)
    )
    sym_not, sym_and, sym_or = _unary(operator.not_), _binary(lambda a, b: a and b), _binary(lambda a, b: a or b)
    and_, or_ = sym_and, sym_or

    def wrap_int(self, number: int) -> Size:
        """A number among sizes."""
        return Size(self.symbolic, (number,) * len(self.values))

    wrap_bool = wrap_int

    def is_int(self) -> bool:
        """Whether it is a number."""
        return not self.is_bool()

    def is_bool(self) -> bool:
        """Whether it is the answer of a comparison."""
        return isinstance(self.values[0], bool)

    def is_float(self) -> bool:
        """False: sizes are integers, and comparisons of them booleans."""
        return False

    is_nested_int = is_float

    def is_constant(self) -> bool:
        """Whether torch may take its value without asking: never, so that torch always asks."""
        return False

    def maybe_as_int(self) -> int | None:
        """The number that it is everywhere, if it is one."""
        return self.values[0] if _same(self.values) else None

    def has_hint(self) -> bool:
        """There is always an example."""
        return True

    def clone(self) -> Size:
        """Sizes don't change."""
        return self

    def value(self, *_where: Any) -> Any:
        """The plain number, or the decision.

        Raises:
            UnsureError: It is not the same at every example.
        """
        if not _same(self.values):
            what = "a decision" if self.is_bool() else "a plain number"
            raise UnsureError(f"{what} depends on sizes: {self.values}")
        return self.values[0]

    int_ = bool_ = guard_int = guard_bool = guard_size_oblivious = expect_true = guard_or_false = guard_or_true = value
    expect_size = statically_known_true = value
