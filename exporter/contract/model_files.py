"""The files of a model beside graphs and weights: their names, and what they say of where a text begins and ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.errors import BundleError

__all__ = ["MODEL_FILES", "TOKENIZER_FILES", "adds_tokens", "end_tokens", "read_settings"]

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "chat_template.jinja",
    "added_tokens.json",
)
MODEL_FILES = ("config.json", "generation_config.json", *TOKENIZER_FILES)


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file.

    Raises:
        BundleError: It is something else.
    """
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"{path}: not a JSON object of settings ({error}); export again") from error
    if not isinstance(data, dict):
        raise BundleError(f"{path}: not a JSON object of settings ({type(data).__name__}); export again")
    return data


def end_tokens(bundle: Bundle) -> frozenset[int]:
    """Tokens that end a text: the config's and the generation settings', where chat models name the end of a turn.

    Raises:
        BundleError: The settings are no JSON.
    """
    found = read_settings(Path(bundle.root) / "generation_config.json").get("eos_token_id")
    more = found if isinstance(found, list) else [found]
    return frozenset(bundle.model.eos_token_ids) | {token for token in more if isinstance(token, int)}


def adds_tokens(folder: Path) -> bool:
    """Whether a model folder's tokenizer puts tokens of its own around a text, such as one for its beginning."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json")).num_special_tokens_to_add(is_pair=False) > 0
