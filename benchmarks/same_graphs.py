"""Structural equality of ONNX graphs, names and metadata aside: two bundles in, the first difference out.

Shows that a change of names, of passes' order or of the code around them left every operator, attribute, constant,
weight and wire where it was: ``python -m benchmarks.same_graphs BEFORE AFTER``; exit code 0 where they are equal.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Set
from pathlib import Path

import onnx_ir as ir

__all__ = ["fingerprint", "first_difference", "signature"]


def signature(model: ir.Model, *, sizes: bool = True) -> Iterator[str]:
    """One line per opset, port, operator and weight, without names.

    Values are numbered in the order in which they are first met, so two graphs give the same lines exactly when the
    same operators in the same order read the same values. Constants and weights stand for their bytes.

    Args:
        model: The graph.
        sizes: False leaves out operators that compute with sizes of tensors and integer constants alone, and both.
    """
    for domain, version in sorted(model.opset_imports.items()):
        yield f"opset {domain or 'ai.onnx'} {version}"
    numbers: dict[ir.Value, int] = {}
    left_out: set[ir.Value] = set()
    for port in model.graph.inputs:
        yield f"input {port.name} {port.dtype} {port.shape} = {_number(port, numbers)}"
    for node in model.graph:
        if not sizes and _of_sizes(node, left_out):
            left_out.update(node.outputs)
            continue
        reads: list[str] = []
        for value in node.inputs:
            if value in left_out or (not sizes and _is_integer_constant(value)):
                reads.append("size")
                continue
            if value is not None and value not in numbers and value.is_initializer():
                yield f"weight {_tensor(value.const_value)} = {_number(value, numbers)}"
            reads.append("-" if value is None else str(_number(value, numbers)))
        attributes = sorted(f"{name}={_attribute(attribute)}" for name, attribute in node.attributes.items())
        writes = [str(_number(value, numbers)) for value in node.outputs]
        yield f"{node.domain}::{node.op_type} ({' '.join(reads)}) [{' '.join(attributes)}] = {' '.join(writes)}"
    for port in model.graph.outputs:
        yield f"output {port.name} {port.dtype} {port.shape} = {_number(port, numbers)}"
    if sizes:
        yield f"unread weights {sum(value not in numbers for value in model.graph.initializers.values())}"


def _is_integer_constant(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer() and value.dtype == ir.DataType.INT64


def _of_sizes(node: ir.Node, known: Set[ir.Value]) -> bool:
    given = [value for value in node.inputs if value is not None]
    integers = (value in known or _is_integer_constant(value) for value in given)
    return node.op_type == "Shape" or (bool(given) and all(integers))


def fingerprint(path: Path) -> str:
    """SHA-256 of a graph file's :func:`signature`."""
    return hashlib.sha256("\n".join(signature(ir.load(path))).encode()).hexdigest()


def first_difference(one: Path, other: Path) -> str | None:
    """Where two graph files first differ; None where they are equal but for names and metadata."""
    mine, theirs = list(signature(ir.load(one))), list(signature(ir.load(other)))
    for place, (left, right) in enumerate(zip(mine, theirs, strict=False)):
        if left != right:
            return f"line {place}:\n  {left}\n  {right}"
    return None if len(mine) == len(theirs) else f"{len(mine)} lines and {len(theirs)}"


def _number(value: ir.Value, numbers: dict[ir.Value, int]) -> int:
    return numbers.setdefault(value, len(numbers))


def _tensor(tensor: ir.TensorProtocol | None) -> str:
    assert tensor is not None
    digest = hashlib.sha256(tensor.tobytes()).hexdigest()[:16]
    return f"{tensor.dtype} {tuple(tensor.shape)} {digest}"


def _attribute(attribute: ir.Attr) -> str:
    if attribute.type == ir.AttributeType.TENSOR:
        return _tensor(attribute.value)
    if attribute.type == ir.AttributeType.GRAPH:
        return hashlib.sha256("\n".join(signature(ir.Model(attribute.value, ir_version=8))).encode()).hexdigest()[:16]
    return repr(attribute.value)


def main() -> int:
    """Compare the graphs of two bundles."""
    one, other = map(Path, sys.argv[1:3])
    differences = 0
    for name in ("prefill.onnx", "decode.onnx"):
        found = first_difference(one / name, other / name)
        print(f"{name}: {fingerprint(one / name)[:16]} equal" if found is None else f"{name}: differs at {found}")
        differences += found is not None
    return min(differences, 1)


if __name__ == "__main__":
    sys.exit(main())
