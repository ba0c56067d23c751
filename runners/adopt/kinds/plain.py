"""A plain ``.onnx`` file, or a folder with one or two: what ``torch.onnx.export`` and hand-written exporters leave."""

from __future__ import annotations

from pathlib import Path

from kvparity.exporter.contract.errors import BundleError
from kvparity.runners.adopt.package import Package, graph_roles

__all__ = ["find"]


def find(path: Path, variant: str) -> Package | None:
    """A file plays both graphs; two files in a folder are told apart by their names."""
    if path.is_file():
        return None if path.suffix != ".onnx" else Package("plain", path.parent, graph_roles([path.name]))
    names = sorted(item.name for item in path.glob("*.onnx"))
    if not names:
        return None
    roles = graph_roles([name for name in names if not variant or Path(name).stem == variant])
    if not roles:
        raise BundleError(
            f"{path}: holds {', '.join(names)}, and nothing says which plays a prompt and which a decode call; "
            "give one .onnx file, or name them prefill.onnx and decode.onnx"
        )
    return Package("plain", path, roles, variant)
