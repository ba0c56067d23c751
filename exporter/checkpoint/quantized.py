"""Whether transformers can make dense weights of a quantised checkpoint on a CPU, and one line where it cannot."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from kvparity.exporter.contract.errors import ExportError
from kvparity.exporter.contract.quiet import quiet_libraries

__all__ = ["check_quantized", "describe_quantized", "refuse_uneven_blocks", "unusable"]

_SCALES = re.compile(r"(.+\.weight)_scale_inv$|(.+)\.scale$")
_ADVICE = "dequantise the checkpoint in transformers first, or export the one that it was quantised from"


def describe_quantized(settings: Mapping[str, Any]) -> str:
    """Name, bits and groups of a quantisation, such as ``fp8 in blocks of 128 × 128``."""
    method = str(settings.get("quant_method", "an unnamed method"))
    bits = settings.get("bits") or next((n for n in (4, 8) if settings.get(f"load_in_{n}bit")), None)
    block, group = settings.get("weight_block_size"), settings.get("group_size")
    words = [method]
    words += [f"{bits} bits"] if bits else []
    words += [f"format {settings['format']}"] if isinstance(settings.get("format"), str) else []
    words += [f"blocks of {' × '.join(map(str, block))}"] if block else []
    words += [f"groups of {group}"] if isinstance(group, int) and group > 0 else []
    return ", ".join(words)


def check_quantized(settings: Mapping[str, Any], source: str) -> None:
    """Refuse a quantised checkpoint that transformers cannot load here.

    Raises:
        ExportError: Says how its weights are quantised, what transformers lacks, and what to do.
    """
    from transformers.quantizers import AutoHfQuantizer

    try:
        with quiet_libraries():
            if not AutoHfQuantizer.supports_quant_method(dict(settings)):
                raise ValueError("transformers does not know it")
            quantizer = AutoHfQuantizer.from_config(dict(settings), pre_quantized=True)
            quantizer.validate_environment(device_map=None, weights_only=True)
    except Exception as error:  # ImportError, RuntimeError, ValueError, NotImplementedError, validation errors …
        raise unusable(settings, source, error) from error


def unusable(settings: Mapping[str, Any], source: str, error: Exception) -> ExportError:
    """The refusal of a checkpoint whose weights transformers cannot make dense."""
    reason = " ".join(str(error).split()).rstrip(".")[:200] or type(error).__name__
    return ExportError(
        f"{source}: its weights are quantised with {describe_quantized(settings)}, which transformers cannot load on a "
        f"CPU here ({reason}); {_ADVICE}"
    )


def refuse_uneven_blocks(stored: Mapping[str, Any], settings: Mapping[str, Any], source: str) -> None:
    """Refuse FP8 weights whose last block is cut short: transformers spreads scales evenly over rows and columns.

    Raises:
        ExportError: Names the weight.
    """
    block = settings.get("weight_block_size")
    if not block:
        return
    for name, scale in stored.items():
        found = _SCALES.fullmatch(name)
        weight = stored.get((found[1] or f"{found[2]}.weight") if found else "")
        if weight is None or len(weight.shape) != len(scale.shape) or len(scale.shape) < 2:
            continue
        sizes = zip(weight.shape[-2:], scale.shape[-2:], block, strict=True)
        if any(size % width and count == -(-size // width) for size, count, width in sizes):
            raise ExportError(
                f"{source}: {(found and (found[1] or found[2]))} of {weight.shape} is quantised in blocks of "
                f"{block[0]} × {block[1]}, the last of them cut short; transformers spreads scales evenly and would "
                f"give other weights; {_ADVICE}"
            )
