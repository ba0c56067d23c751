"""Short convolutions and recurrences in ONNX.

A convolution is Conv for many tokens, products and sums of shifted columns for few; a recurrence is LinearAttention of
opset 27, which a pass spells in plain operators where a profile does not have it.
"""

# No `from __future__ import annotations`: torch's exporter reads the signatures below.

from typing import Any

import onnx
import onnx_ir as ir
from onnx.defs import OpSchema
from onnxscript import opset18 as op
from onnxscript.values import Opset

from kvparity.exporter.passes.selective_scan import SELECTIVE_SCAN

__all__ = ["causal_conv", "clamp_several", "linear_attention", "selective_scan", "softplus"]


_SCAN_INPUTS = ("inputs", "step", "rate", "key", "query", "state")
if not onnx.defs.has("SelectiveScan", SELECTIVE_SCAN):  # onnxscript writes operators that have a schema
    onnx.defs.register_schema(
        OpSchema(
            "SelectiveScan",
            SELECTIVE_SCAN,
            1,
            inputs=[OpSchema.FormalParameter(name, "T") for name in _SCAN_INPUTS],
            outputs=[OpSchema.FormalParameter(name, "T") for name in ("output", "present")],
            type_constraints=[("T", ["tensor(float)", "tensor(double)"], "")],
        )
    )


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


def linear_attention(query: Any, key: Any, value: Any, state: Any, decay: Any, beta: Any = None, heads: int = 1) -> Any:
    """(output, state after the call)."""
    rule = "gated" if beta is None else "gated_delta"
    return Opset("", 27).LinearAttention(
        query, key, value, state, decay, beta, q_num_heads=heads, kv_num_heads=heads, scale=1.0, update_rule=rule
    )


def selective_scan(inputs: Any, step: Any, rate: Any, key: Any, query: Any, state: Any) -> Any:
    """(output, state after the call); ONNX has no such operator, a pass spells it (:mod:`exporter.passes`)."""
    return Opset(SELECTIVE_SCAN, 1).SelectiveScan(inputs, step, rate, key, query, state)


def clamp_several(values: Any, mask: Any, low: float, high: float) -> Any:
    """Where a call has one token that follows others, its values as they are."""
    clamped = op.Max(values, _constant(low, values))
    if high != float("inf"):
        clamped = op.Min(clamped, _constant(high, values))
    one = op.Equal(op.Shape(values, start=1, end=2), _ints(1))
    return op.Where(op.And(one, op.Greater(op.Shape(mask, start=1, end=2), _ints(1))), values, clamped)


def softplus(self: Any, beta: float = 1.0, threshold: float = 20.0) -> Any:
    """log(1 + exp(x)) for small x without losing digits, as log1p does: log(u) e / (u - 1) with u = 1 + e (W. Kahan).

    ONNX Runtime's Softplus takes the logarithm of the rounded 1 + exp(x): 1e-5 off, relatively, at x = -5.
    """
    one = _constant(1.0, self)
    scaled = self if beta == 1 else op.Mul(self, _constant(beta, self))
    power = op.Exp(scaled)
    total = op.Add(power, one)
    rest = op.Sub(total, one)
    logarithm = op.Mul(op.Log(total), op.Div(power, rest))
    exact = op.Where(op.Equal(rest, _constant(0.0, self)), power, logarithm)
    exact = exact if beta == 1 else op.Div(exact, _constant(beta, self))
    return op.Where(op.Greater(scaled, _constant(threshold, self)), self, exact)


def _constant(value: float, like: Any) -> Any:
    return op.Constant(value=ir.tensor(value, dtype=like.dtype))
