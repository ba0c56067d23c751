"""A folder for ONNX Runtime GenAI: ``genai_config.json`` names the decoder's file and says what its buffers are."""

from __future__ import annotations

from pathlib import Path

from kvparity.exporter.contract.errors import BundleError
from kvparity.runners.adopt.package import Package, graph_roles, read_json

__all__ = ["find"]

_CONFIG = "genai_config.json"


def find(path: Path, variant: str) -> Package | None:
    """The decoder that ``genai_config.json`` names."""
    if not (path / _CONFIG).is_file():
        return None
    config = read_json(path / _CONFIG)
    model = config.get("model")
    decoder = model.get("decoder") if isinstance(model, dict) else None
    name = decoder.get("filename") if isinstance(decoder, dict) else None
    if not isinstance(name, str):
        raise BundleError(f"{path / _CONFIG}: model.decoder.filename is missing; expected the decoder's .onnx file")
    search = config.get("search") if isinstance(config.get("search"), dict) else {}
    assert isinstance(model, dict)
    assert isinstance(search, dict)
    settings = {
        "type": str(model.get("type", "")),
        "context_length": str(model.get("context_length", "")),
        "past_present_share_buffer": str(search.get("past_present_share_buffer", "")).lower(),
    }
    return Package("genai", path, graph_roles([name]), variant, settings)
