"""A folder for transformers.js: ``onnx/model.onnx`` and its variants, ``onnx/model_q4f16.onnx`` and the like."""

from __future__ import annotations

from pathlib import Path

from kvparity.exporter.contract.errors import BundleError
from kvparity.runners.adopt.package import Package, graph_roles

__all__ = ["find"]

_STEMS = ("decoder_model_merged", "model", "decoder_model")


def find(path: Path, variant: str) -> Package | None:
    """The graph of a variant: ``""`` or ``fp32`` is ``model.onnx``, ``q4`` is ``model_q4.onnx``."""
    folder = path / "onnx"
    names = sorted(item.name for item in folder.glob("*.onnx")) if folder.is_dir() else []
    if not names:
        return None
    suffix = "" if variant in ("", "fp32") else f"_{variant}"
    found = next((f"{stem}{suffix}.onnx" for stem in _STEMS if f"{stem}{suffix}.onnx" in names), None)
    if found is None:
        raise BundleError(f"{path}: has no variant {variant or 'fp32'!r}; it has {', '.join(names)}")
    return Package("transformersjs", path, graph_roles([f"onnx/{found}"]), variant)
