"""Short convolutions in ONNX: Conv for many tokens, products and sums of shifted columns for few."""

# No `from __future__ import annotations`: torch's exporter reads the signatures below.

from typing import Any

from onnxscript import opset18 as op

__all__ = ["causal_conv"]


def _ints(*values: int) -> Any:
    return op.Constant(value_ints=list(values))


def causal_conv(window: Any, weight: Any, bias: Any = None, few: bool = False) -> Any:
    """Sum over k of weight[:, k] x window[:, :, k : k + sequence].

    ONNX Runtime's Conv takes 4 x the time of the plain operators for one token, and a quarter of it for many.
    """
    kernel, channels = weight.shape[1], weight.shape[0]
    if not few:
        return op.Conv(window, op.Unsqueeze(weight, _ints(1)), bias, group=channels, kernel_shape=[kernel])
    total = None
    for place in range(kernel):
        end = op.Shape(window, start=2, end=3) if place == kernel - 1 else _ints(place + 1 - kernel)
        columns = op.Slice(window, _ints(place), end, _ints(2))
        term = op.Mul(columns, op.Slice(weight, _ints(place), _ints(place + 1), _ints(1)))
        total = term if total is None else op.Add(total, term)
    return total if bias is None else op.Add(total, op.Unsqueeze(bias, _ints(1)))
