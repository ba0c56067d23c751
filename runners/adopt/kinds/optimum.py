"""A folder of Optimum: ``config.json`` beside one merged decoder, or one for prompts and one with a past."""

from __future__ import annotations

from pathlib import Path

from kvparity.runners.adopt.package import Package, graph_roles

__all__ = ["find"]


def find(path: Path, variant: str) -> Package | None:
    """Graphs by Optimum's names; a variant is a suffix such as ``quantized``."""
    if not (path / "config.json").is_file():
        return None
    stems = ("decoder_model_merged", "decoder_model", "decoder_with_past_model", "model")
    wanted = {f"{stem}_{variant}.onnx" if variant else f"{stem}.onnx" for stem in stems}
    names = sorted(item.name for item in path.glob("*.onnx") if item.name in wanted)
    roles = graph_roles(names) if names else {}
    return Package("optimum", path, roles, variant) if roles else None
