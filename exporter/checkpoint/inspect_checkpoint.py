"""What a checkpoint is before it is exported: its layers and its cache slots."""

from __future__ import annotations

from pathlib import Path

from kvparity.exporter.checkpoint.folder import is_gguf
from kvparity.exporter.contract.adapters import ADAPTER_CONFIG
from kvparity.exporter.contract.bundle import MANIFEST
from kvparity.exporter.contract.spec import ModelSpec

__all__ = ["inspect_checkpoint", "is_checkpoint"]


def is_checkpoint(path: Path) -> bool:
    """Whether a path is a model rather than a bundle (a bundle has a config.json too)."""
    if (path / ADAPTER_CONFIG).is_file():
        return not (path / MANIFEST).is_file()
    return is_gguf(path) or ((path / "config.json").is_file() and not (path / MANIFEST).is_file())


def inspect_checkpoint(path: Path) -> tuple[str, ModelSpec, str]:
    """Name and model of a checkpoint, from its config alone, and how its weights are quantised, empty if they are not.

    Raises:
        ExportError: It cannot be exported; says why.
    """
    from kvparity.exporter.checkpoint.gguf_file import read_gguf
    from kvparity.exporter.checkpoint.gguf_tensors import check_gguf
    from kvparity.exporter.checkpoint.model_spec import model_spec
    from kvparity.exporter.checkpoint.quantized import describe_quantized
    from kvparity.exporter.checkpoint.source import resolve

    checkpoint = resolve(str(path))
    config = checkpoint.config()
    model = checkpoint.meta_model(config)
    if checkpoint.gguf:
        check_gguf(read_gguf(checkpoint.folder / checkpoint.gguf), model)
    packed = checkpoint.quantization()
    words = "" if packed is None else describe_quantized(packed)
    return checkpoint.source, model_spec(config, model, "float32"), words
