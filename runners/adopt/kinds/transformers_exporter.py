"""A folder of transformers' own OnnxExporter: ``export.json`` beside one graph or two, for prompts and for decode."""

from __future__ import annotations

from pathlib import Path

from kvparity.runners.adopt.package import Package, graph_roles, read_json

__all__ = ["find"]


def find(path: Path, variant: str) -> Package | None:
    """Graphs by their names; a decode graph that takes any number of tokens and no past plays prompts as well."""
    if not (path / "export.json").is_file():
        return None
    names = sorted(item.name for item in path.glob("*.onnx"))
    roles = graph_roles(names)
    if not roles:
        return None
    settings = {key: str(value) for key, value in read_json(path / "export.json").items() if "version" in key}
    return Package("transformers_exporter", path, roles, variant, settings)
