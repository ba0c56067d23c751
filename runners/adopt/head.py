"""The checkpoint's own head beside a foreign package, so that logits of large vocabularies can be rebuilt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kvparity.exporter.contract.bundle import file_entry
from kvparity.exporter.contract.manifest import FileEntry

__all__ = ["write_head"]

_FILE = "reference/head.safetensors"


def write_head(folder: Path, model: Any) -> tuple[FileEntry, ...]:
    """Write weight and bias of a transformers model's head, as transformers loaded them.

    Args:
        folder: The bundle being written.
        model: The reference model.
    """
    from safetensors.torch import save_file

    head = model.get_output_embeddings()
    if head is None:
        return ()
    tensors = {"lm_head.weight": head.weight.detach().contiguous().clone()}
    if getattr(head, "bias", None) is not None:
        tensors["lm_head.bias"] = head.bias.detach().contiguous().clone()
    path = folder / _FILE
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path)
    return (file_entry(folder, path),)
