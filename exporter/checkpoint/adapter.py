"""A checkpoint with a LoRA adapter merged into its weights, as a checkpoint of its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from kvparity.exporter.checkpoint.source import Checkpoint
from kvparity.exporter.checkpoint.tokenizer import copy_tokenizer
from kvparity.exporter.contract.adapters import merge_adapter
from kvparity.exporter.contract.errors import ExportError
from kvparity.exporter.contract.files import scratch_folder

__all__ = ["merged"]

_GENERATION = "generation_config.json"


@contextmanager
def merged(checkpoint: Checkpoint, dtype: str) -> Iterator[Checkpoint]:
    """The checkpoint that an export reads: with the adapter merged, in a folder that goes afterwards.

    Args:
        checkpoint: Names the adapter. The adapter's tokenizer, where it brings one, goes before the model's.
        dtype: What the model is loaded and merged in.

    Raises:
        ExportError: The adapter does not fit the model.
    """
    import torch
    from transformers import GenerationConfig

    adapter = checkpoint.adapter
    assert adapter is not None
    model = checkpoint.load(getattr(torch, dtype))
    try:
        model = merge_adapter(model, adapter)
    except Exception as error:  # peft raises whatever its settings and tensors may be wrong in
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ExportError(f"{adapter}: this adapter cannot be merged into {checkpoint.source}: {reason}") from error
    with scratch_folder("kvparity-merged-") as name:
        folder = Path(name)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.generation_config = GenerationConfig()  # transformers refuses to save some that it reads
        model.save_pretrained(folder)
        del model
        (folder / _GENERATION).unlink()
        brings = (adapter / "tokenizer.json").is_file()
        copy_tokenizer(replace(checkpoint, folder=adapter if brings else checkpoint.folder), folder)
        if (checkpoint.folder / _GENERATION).is_file():
            shutil.copyfile(checkpoint.folder / _GENERATION, folder / _GENERATION)
        yield Checkpoint(checkpoint.source, checkpoint.revision, folder)
