"""What a checkpoint is before it is exported: its layers, its cache slots, and what a bundle of it would prove."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from kvparity.exporter.contract.bundle import MANIFEST
from kvparity.exporter.contract.features import coverage_lines

__all__ = ["is_checkpoint", "print_checkpoint"]


def is_checkpoint(path: Path) -> bool:
    """Whether a path is a model rather than a bundle (a bundle has a config.json too)."""
    return path.suffix == ".gguf" or ((path / "config.json").is_file() and not (path / MANIFEST).is_file())


def print_checkpoint(path: Path, *, as_json: bool) -> None:
    """Print what a checkpoint has, from its config alone.

    Raises:
        ExportError: It cannot be exported; says why.
    """
    from kvparity.exporter.checkpoint.gguf_file import read_gguf
    from kvparity.exporter.checkpoint.gguf_tensors import check_gguf
    from kvparity.exporter.checkpoint.model_spec import model_spec
    from kvparity.exporter.checkpoint.source import resolve

    checkpoint = resolve(str(path))
    config = checkpoint.config()
    model = checkpoint.meta_model(config)
    if checkpoint.gguf:
        check_gguf(read_gguf(path), model)
    spec = model_spec(config, model, "float32")
    if as_json:
        print(json.dumps({"checkpoint": checkpoint.source, "model": asdict(spec)}, indent=1))
        return
    print(f"{path}  {spec.architecture} ({spec.model_type}), {spec.parameters:,} parameters")
    print(
        f"layers {spec.pattern}, hidden {spec.hidden_size}, heads {spec.heads}, vocabulary {spec.vocab_size:,}, "
        f"positions {spec.max_position:,}, window {spec.window or 'none'}, {len(spec.slots)} cache slots"
    )
    proves, missing = coverage_lines(spec, [2 * (spec.window or 0) + 1])
    print(proves.replace("this bundle", "a bundle of it"))
    print(missing.replace("this bundle does", "a bundle of it does"))
