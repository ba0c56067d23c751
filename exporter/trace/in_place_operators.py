"""Operators that write into a tensor: which that compute the same instead, unless a view shows what is written."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["UnsupportedError", "is_view", "out_of_place", "plain_operator"]

_aten = torch.ops.aten
_VIEWS = {"view", "slice", "select", "transpose", "expand", "unsqueeze", "squeeze", "permute", "reshape", "split"}


class UnsupportedError(Exception):
    """The program needs torch's own decomposition."""


def out_of_place(operation: Any, target: Any) -> Any:
    """The operator that computes what one that writes into a node's value writes.

    Raises:
        UnsupportedError: There is none, or the value is seen through a view.
    """
    if is_view(target) or any(is_view(user, target) for user in target.users):
        raise UnsupportedError(f"{operation} writes in place")
    return plain_operator(operation)


def plain_operator(operation: Any) -> Any:
    """The operator that gives what this one writes.

    Raises:
        UnsupportedError: There is none.
    """
    base, overload = operation._schema.name.split("::")[1], operation._overloadname
    plain = getattr(getattr(_aten, base.removesuffix("_"), None), overload, None)
    if not base.endswith("_") or plain is None:
        raise UnsupportedError(f"{operation} writes in place")
    return plain


def is_view(node: Any, of: Any = None) -> bool:
    """Whether a node only looks into another tensor."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return node.op == "placeholder"
    name = node.target._schema.name.split("::")[1]
    return name in _VIEWS and (of is None or node.args[0] is of)
