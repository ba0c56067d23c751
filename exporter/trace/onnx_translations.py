"""How torch operators become ONNX operators, one table per profile; everything not listed is torch's own choice.

A profile's spelling is chosen while translating rather than patched in afterwards, so constants keep float64 digits.
"""

# No `from __future__ import annotations`: torch's exporter reads the signatures below.

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import opset18 as op
from onnxscript.values import Opset

from kvparity.exporter.passes.probe_names import PROBE

__all__ = ["translation_table"]

_SQRT_2_OVER_PI = 0.7978845608028653558798921198687
_SQRT_1_OVER_2 = 0.7071067811865475244008443621048
_GELU_CUBIC = 0.044715
_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def _probe(value: Any, name: str) -> Any:
    named = op.Identity(value)
    named.metadata_props[PROBE] = name
    return named


def _gelu_decomposed(self: Any, approximate: str = "none") -> Any:
    """GELU without the Gelu operator: engines get its tanh form wrong (OpenCV 3e-4, IREE 1.3e-4).

    0.5 x (1 + tanh u) is x sigmoid(2u), u = x (c0 + c1 x x), c0 = sqrt(2/pi), c1 = 0.044715 c0 (Hendrycks & Gimpel
    2016, eq. 2): two operators fewer, no cancellation at negative x, and no Tanh, which is NaN in OpenCV 5 for
    arguments just past 44 (trained weights reach 100).
    """
    if approximate == "tanh":
        square = _times(op.Mul(self, self), 2 * _SQRT_2_OVER_PI * _GELU_CUBIC, self)
        inner = op.Mul(self, op.Add(square, _constant(2 * _SQRT_2_OVER_PI, self)))
        return op.Mul(self, op.Sigmoid(inner))
    inner = op.Erf(_times(self, _SQRT_1_OVER_2, self))
    return op.Mul(_times(self, 0.5, self), op.Add(inner, _constant(1.0, self)))


def _constant(value: float, like: Any) -> Any:
    """A constant in the dtype of ``like``; a bare python float would pass through float32."""
    return op.Constant(value=ir.tensor(value, dtype=like.dtype))


def _times(value: Any, factor: float, like: Any) -> Any:
    return op.Mul(value, _constant(factor, like))


def _pow_scalar(self: Any, exponent: float) -> Any:
    """Powers that models use, without Pow (inexact on WebGPU: 4.5e-4 to 2e-3)."""
    if exponent == 2:
        return op.Mul(self, self)
    if exponent == 3:
        return op.Mul(op.Mul(self, self), self)
    if exponent == 0.5:
        return op.Sqrt(self)
    if exponent == -0.5:
        return op.Reciprocal(op.Sqrt(self))
    if exponent == -1:
        return op.Reciprocal(self)
    return op.Pow(self, exponent)


def _square(self: Any) -> Any:
    return op.Mul(self, self)


def _min(self: Any, other: Any) -> Any:
    return op.Min(self, other)


def _max(self: Any, other: Any) -> Any:
    return op.Max(self, other)


def _transpose(self: Any) -> Any:
    return op.Transpose(self)


def _rsqrt(self: Any) -> Any:
    return op.Reciprocal(op.Sqrt(self))


def _rsub(self: Any, other: Any, alpha: float = 1) -> Any:
    """``number - tensor``; torch has no translation, and its decomposition traces the program twice more."""
    return op.Sub(_constant(other, self), self if alpha == 1 else _times(self, alpha, self))


def _linear(input: Any, weight: Any, bias: Any = None) -> Any:
    """X W^T + b as MatMul of the transposed weight: no Gemm, no reshape; engines fold the Transpose when loading."""
    product = op.MatMul(input, op.Transpose(weight, perm=[1, 0]))
    return product if bias is None else op.Add(product, bias)


def _baddbmm(self: Any, batch1: Any, batch2: Any, beta: float = 1.0, alpha: float = 1.0) -> Any:
    """Sum of beta S and alpha A B, factors in the operands' dtype; torch's translation rounds them to float32."""
    product = op.MatMul(batch1, batch2)
    scaled = product if alpha == 1 else _times(product, alpha, batch1)
    return op.Add(self if beta == 1 else _times(self, beta, batch1), scaled)


def _masked_fill(self: Any, mask: Any, value: float) -> Any:
    """A number where the mask is; torch's translation makes the smallest float64 an infinite float32."""
    return op.Where(mask, _constant(value, self), self)


def _rms_norm(input: Any, normalized_shape: Sequence[int], weight: Any = None, eps: float | None = None) -> Any:
    """Root mean square norm, x / sqrt(mean(x x) + eps) times the weight, without a float32 epsilon."""
    axes = op.Constant(value_ints=list(range(-len(normalized_shape), 0)))
    least = _constant(float(np.finfo(input.dtype.numpy()).eps) if eps is None else eps, input)
    normal = op.Div(input, op.Sqrt(op.Add(op.ReduceMean(op.Mul(input, input), axes, keepdims=1), least)))
    return normal if weight is None else op.Mul(normal, weight)


def _softmax(self: Any, dim: int, dtype: int = -1) -> Any:
    """Softmax in the dtype asked for; torch's translation casts its result only, so that half types lose digits."""
    wide = self if dtype in (-1, self.dtype) else op.Cast(self, to=dtype)
    return op.Softmax(wide, axis=dim)


def _layer_norm(
    input: Any,
    normalized_shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-05,
    cudnn_enable: bool = True,
) -> Any:
    """Layer norm in plain operators, with an epsilon that is no float32 attribute (8e-11 on logits).

    In float32 for half types, as torch's own kernel: 1e-5 is no normal float16, and squares overflow from 256 on.
    """
    own = input.dtype
    if own in _HALF:
        x, w, b = (None if part is None else op.Cast(part, to=int(ir.DataType.FLOAT)) for part in (input, weight, bias))
        return op.Cast(_plain_layer_norm(x, w, b, normalized_shape, eps, ir.DataType.FLOAT), to=int(own))
    return _plain_layer_norm(input, weight, bias, normalized_shape, eps, own)


def _plain_layer_norm(
    input: Any, weight: Any, bias: Any, normalized_shape: Sequence[int], eps: float, kind: Any
) -> Any:
    axes = op.Constant(value_ints=list(range(-len(normalized_shape), 0)))
    centered = op.Sub(input, op.ReduceMean(input, axes, keepdims=1))
    variance = op.ReduceMean(op.Mul(centered, centered), axes, keepdims=1)
    normal = op.Div(centered, op.Sqrt(op.Add(variance, op.Constant(value=ir.tensor(eps, dtype=kind)))))
    scaled = normal if weight is None else op.Mul(normal, weight)
    return scaled if bias is None else op.Add(scaled, bias)


def _scalar_tensor(s: Any, dtype: int = -1, layout: str = "", device: str = "", pin_memory: bool = False) -> Any:
    """A python scalar as a constant of its own dtype; torch's translation goes through float32 and rounds it."""
    kind = ir.DataType.FLOAT if dtype == -1 else ir.DataType(dtype)
    if isinstance(s, ir.Value):
        return op.Cast(s, to=int(kind))
    return op.Constant(value=ir.tensor(s, dtype=kind))


def _attention(query: Any, key: Any, value: Any, mask: Any, softcap: float) -> Any:
    output = Opset("", 23).Attention(query, key, value, mask, scale=1.0, softcap=softcap)[0]
    output.producer().resize_outputs(1)  # TensorRT refuses Attention with more than one output
    return output


def _tensor_scatter(cache: Any, update: Any, write_indices: Any, circular: bool) -> Any:
    mode = "circular" if circular else "linear"
    return Opset("", 24).TensorScatter(cache, update, write_indices, axis=2, mode=mode)


def _gelu(self: Any, approximate: str = "none") -> Any:
    return Opset("", 20).Gelu(self, approximate=approximate)


def _dropout(input: Any, p: float, train: bool) -> Any:
    return op.Identity(input)


def translation_table(profile: str) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Custom translations of a profile, for ``torch.onnx.export(custom_translation_table=…)``."""
    import torch

    import kvparity.exporter.model.probe
    import kvparity.exporter.model.states
    from kvparity.exporter.trace import onnx_states

    aten = torch.ops.aten
    table: dict[Callable[..., Any], Callable[..., Any]] = {
        torch.ops.kvparity.probe.default: _probe,
        torch.ops.kvparity.causal_conv.default: onnx_states.causal_conv,
        torch.ops.kvparity.linear_attention.default: onnx_states.linear_attention,
        torch.ops.kvparity.selective_scan.default: onnx_states.selective_scan,
        torch.ops.kvparity.clamp_several.default: onnx_states.clamp_several,
        aten.softplus.default: onnx_states.softplus,
        aten.linear.default: _linear,
        aten.pow.Tensor_Scalar: _pow_scalar,
        aten.rms_norm.default: _rms_norm,
        aten.square.default: _square,
        aten.numpy_T.default: _transpose,
        aten.min.other: _min,
        aten.max.other: _max,
        aten.rsqrt.default: _rsqrt,
        aten.rsub.Scalar: _rsub,
        aten.dropout.default: _dropout,
        aten.scalar_tensor.default: _scalar_tensor,
        aten.softmax.int: _softmax,
        aten.baddbmm.default: _baddbmm,
        aten.masked_fill.Scalar: _masked_fill,
    }
    if profile in ("modern", "ort"):
        import kvparity.exporter.model.banded_attention  # registers kvparity::band_mask and kvparity::banded_attention
        import kvparity.exporter.model.standard_operators  # noqa: F401  (registers kvparity::attention and kvparity::tensor_scatter)
        from kvparity.exporter.trace.onnx_banded_attention import band_mask, banded_attention

        table[torch.ops.kvparity.attention.default] = _attention
        table[torch.ops.kvparity.tensor_scatter.default] = _tensor_scatter
        table[torch.ops.kvparity.band_mask.default] = band_mask
        table[torch.ops.kvparity.banded_attention.default] = banded_attention
    if profile in ("modern", "ort"):
        table[aten.gelu.default] = _gelu
    if profile in ("bare", "portable"):
        table[aten.gelu.default] = _gelu_decomposed
        table[aten.layer_norm.default] = _layer_norm
    return table
