"""Takes a checkpoint's tokenizer along as a ``tokenizer.json`` that any language can read."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from kvparity.exporter.checkpoint.source import Checkpoint
from kvparity.exporter.contract.chat_templates import NAMED_TEMPLATES, SPECIAL_TOKENS, chat_templates, special_tokens
from kvparity.exporter.contract.errors import lines_of
from kvparity.exporter.contract.extras import missing_package
from kvparity.exporter.contract.model_files import TOKENIZER_FILES, open_tokenizer, read_settings, unlimit_tokenizer
from kvparity.exporter.contract.quiet import quiet_libraries

__all__ = ["copy_tokenizer", "sample_text"]

# Vocabularies that transformers converts: byte-level BPE, WordPiece, SentencePiece, Mistral's and tiktoken's.
_VOCABULARIES = ("vocab.json", "vocab.txt", "tekken.json", "*.model", "tokenizer.model.*", "*.tiktoken")

_CONVERTERS = ("sentencepiece", "protobuf", "tiktoken")  # of the extra `tokenizers`


def copy_tokenizer(checkpoint: Checkpoint, folder: Path) -> str:
    """Put the tokenizer and its chat templates into a bundle; a checkpoint may have none.

    Files are copied. Where there is no ``tokenizer.json``, transformers converts what there is.

    Returns:
        Why the bundle has no tokenizer although the checkpoint has one; empty otherwise.
    """
    if checkpoint.gguf is not None:
        return _convert_gguf(checkpoint, folder)
    for name in TOKENIZER_FILES:
        if (checkpoint.folder / name).is_file():
            shutil.copyfile(checkpoint.folder / name, folder / name)
    for path in sorted((checkpoint.folder / NAMED_TEMPLATES).glob("*.jinja")):
        (folder / NAMED_TEMPLATES).mkdir(exist_ok=True)
        shutil.copyfile(path, folder / NAMED_TEMPLATES / path.name)
    reason = ""
    if not (folder / "tokenizer.json").is_file():
        reason = _convert(checkpoint.folder, folder)
    if (folder / "tokenizer.json").is_file():
        unlimit_tokenizer(folder)
        _name_special_tokens(folder)
    return reason


def _convert(source: Path, folder: Path) -> str:
    """Convert a vocabulary that is no ``tokenizer.json``; returns why that did not work."""
    found = sorted(path.name for pattern in _VOCABULARIES for path in source.glob(pattern))
    if not found:
        return ""
    try:
        loaded = _from_transformers(source)
        loaded.backend_tokenizer.save(str(folder / "tokenizer.json"))
    except Exception as error:  # transformers raises whatever its many tokenizers and their packages raise
        return f"{found[0]} cannot be converted to a tokenizer.json ({_reason(error)})"
    settings = {name: token for name, token in loaded.special_tokens_map.items() if name in SPECIAL_TOKENS}
    path = folder / "tokenizer_config.json"
    text = json.dumps({**settings, **read_settings(path)}, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
    return ""


def _from_transformers(folder: Path) -> Any:
    from transformers import AutoTokenizer

    with quiet_libraries():
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _reason(error: Exception) -> str:
    text = lines_of(error)[0]
    if isinstance(error, AttributeError) and "backend_tokenizer" in text:
        return "transformers reads it in Python alone"
    missing = [name for name in _CONVERTERS if name in str(error).lower() and not _is_installed(name)]
    if missing:
        return missing_package(missing[0])
    if "trust_remote_code" in str(error):
        return "that takes Python code of the checkpoint's own, which is never run"
    return text[:200]


def _is_installed(distribution: str) -> bool:
    try:
        return bool(version(distribution))
    except PackageNotFoundError:
        return False


def _convert_gguf(checkpoint: Checkpoint, folder: Path) -> str:
    from transformers import AutoTokenizer

    # Told its type, transformers does not read the file a second time in its slow way for the config; it has no
    # tokenizer of the type llama, though, and finds that out.
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    reason = ""
    for told in ({"tokenizer_type": kind}, {}):
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                checkpoint.folder, gguf_file=checkpoint.gguf, local_files_only=True, trust_remote_code=False, **told
            )
            tokenizer.save_pretrained(folder)
        except Exception as error:  # no tokenizer in the file: the graphs are complete without one
            reason = f"its tokenizer cannot be converted ({_reason(error)})"
            continue
        unlimit_tokenizer(folder)
        return ""
    return reason


def _name_special_tokens(folder: Path) -> None:
    """Write down special tokens that a template names and that only transformers' class of the tokenizer knows."""
    text = "".join(chat_templates(folder).values())
    path = folder / "tokenizer_config.json"
    settings = read_settings(path)
    known = settings.keys() | special_tokens(folder).keys()
    asked = {name for name in SPECIAL_TOKENS if name in text} - known
    if not asked:
        return
    try:
        found = _from_transformers(folder).special_tokens_map
    except Exception:  # no class of transformers knows it either: the template finds the name undefined, as there
        return
    if asked & found.keys():
        settings |= {name: found[name] for name in asked & found.keys()}
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def sample_text(folder: Path, count: int, *, seed: int = 128, text: str | None = None) -> tuple[int, ...]:
    """At least ``count`` token ids of stories, or those of a text, by the bundle's own tokenizer; empty without one.

    Real models need real text: on random ids their activations, and with them PyTorch's own rounding, grow tenfold.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return ()
    from kvparity.exporter.tinygemma.corpus import stories

    tokenizer = open_tokenizer(path)
    if text is not None:
        return tuple(tokenizer.encode(text).ids)
    parts: list[str] = []
    for story in stories(seed):
        parts.append(story)
        if sum(map(len, parts)) > 8 * count:  # letters; a token is at most about eight in English
            break
    return tuple(tokenizer.encode("\n\n".join(parts)).ids)
