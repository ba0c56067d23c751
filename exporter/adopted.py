"""The checkpoint's part of an adopted bundle: config, tokenizer and description; the graphs are somebody else's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kvparity.exporter.checkpoint.model_spec import model_spec
from kvparity.exporter.checkpoint.source import Checkpoint
from kvparity.exporter.checkpoint.tokenizer import copy_tokenizer, sample_text
from kvparity.exporter.contract.cases import Case
from kvparity.exporter.contract.manifest import CheckpointEntry
from kvparity.exporter.contract.schedule import default_cases
from kvparity.exporter.contract.spec import ModelSpec
from kvparity.exporter.export import copy_files, origin, versions

__all__ = ["CheckpointSide", "describe_checkpoint"]


@dataclass(frozen=True)
class CheckpointSide:
    """What an adopted bundle takes from the checkpoint.

    Attributes:
        model: Its description.
        origin: Its files, hashed.
        versions: Packages that read it.
        cases: The schedule of such a model.
    """

    model: ModelSpec
    origin: CheckpointEntry
    versions: dict[str, str]
    cases: tuple[Case, ...]


def describe_checkpoint(checkpoint: Checkpoint, folder: Path, target: Path, limit: int | None) -> CheckpointSide:
    """Read a checkpoint without its weights; config and tokenizer are put into the bundle's folder.

    Args:
        checkpoint: What a package is judged against.
        folder: The bundle being written.
        target: Where it will lie.
        limit: Longest case in tokens.

    Raises:
        ExportError: The config cannot be read, or the model is none that this project can describe.
    """
    config = checkpoint.config()
    config.save_pretrained(folder)
    copy_tokenizer(checkpoint, folder)
    copy_files(checkpoint, folder)
    model = model_spec(config, checkpoint.meta_model(config), "float32")
    cases = default_cases(model, sample_text(folder, 4096), limit)
    return CheckpointSide(model, origin(checkpoint, target), versions(), cases)
