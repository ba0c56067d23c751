"""Takes a checkpoint's tokenizer along as a ``tokenizer.json`` that any language can read."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

from kvparity.exporter.checkpoint.source import Checkpoint
from kvparity.exporter.contract.model_files import TOKENIZER_FILES

__all__ = ["copy_tokenizer", "sample_text"]


def copy_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    """Copy the tokenizer's files, or convert the one inside a GGUF file; a checkpoint may have none."""
    if checkpoint.gguf is None:
        for name in TOKENIZER_FILES:
            if (checkpoint.folder / name).is_file():
                shutil.copyfile(checkpoint.folder / name, folder / name)
        return
    from transformers import AutoTokenizer

    # Told its type, transformers does not read the file a second time in its slow way for the config; it has no
    # tokenizer of the type llama, though, and finds that out.
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    for told in ({"tokenizer_type": kind}, {}):
        with contextlib.suppress(Exception):  # no tokenizer in the file: the graphs are complete without one
            tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, gguf_file=checkpoint.gguf, **told)
            tokenizer.save_pretrained(folder)
            return


def sample_text(folder: Path, count: int, *, seed: int = 128, text: str | None = None) -> tuple[int, ...]:
    """At least ``count`` token ids of stories, or those of a text, by the bundle's own tokenizer; empty without one.

    Real models need real text: on random ids their activations, and with them PyTorch's own rounding, grow tenfold.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return ()
    from tokenizers import Tokenizer

    from kvparity.exporter.tinygemma.corpus import stories

    tokenizer = Tokenizer.from_file(str(path))
    if text is not None:
        return tuple(tokenizer.encode(text).ids)
    parts: list[str] = []
    for story in stories(seed):
        parts.append(story)
        if sum(map(len, parts)) > 8 * count:  # letters; a token is at most about eight in English
            break
    return tuple(tokenizer.encode("\n\n".join(parts)).ids)
