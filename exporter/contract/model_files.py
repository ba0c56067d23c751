"""The files of a model beside graphs and weights: their names, and what they say of where a text begins and ends."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.errors import BundleError

__all__ = [
    "MODEL_FILES",
    "TOKENIZER_FILES",
    "adds_tokens",
    "end_tokens",
    "open_tokenizer",
    "read_settings",
    "unlimit_tokenizer",
]

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "added_tokens.json",
)
_HEAD = 4096  # letters of a tokenizer.json that hold its first settings
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
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not a JSON object of settings ({error}); put it right, or export again") from error
    if not isinstance(data, dict):
        raise BundleError(
            f"{path}: not a JSON object of settings ({type(data).__name__}); put it right, or export again"
        )
    return data


def end_tokens(bundle: Bundle) -> frozenset[int]:
    """Tokens that end a text: the config's and the generation settings', where chat models name the end of a turn.

    Raises:
        BundleError: The settings are no JSON.
    """
    found = read_settings(Path(bundle.root) / "generation_config.json").get("eos_token_id")
    more = found if isinstance(found, list) else [found]
    known = range(bundle.model.vocab_size)
    return frozenset(bundle.model.eos_token_ids) | {
        token for token in more if isinstance(token, int) and token in known
    }


def open_tokenizer(path: Path) -> Any:
    """The ``tokenizers.Tokenizer`` of a ``tokenizer.json``, which takes a text whole and pads nothing.

    Raises:
        BundleError: The file is damaged, or of a newer tokenizers library.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        reason = " ".join(str(error).split())
        raise BundleError(f"{path}: not a tokenizer that the tokenizers library reads ({reason})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def unlimit_tokenizer(folder: Path) -> None:
    """Take truncation and padding out of a folder's ``tokenizer.json``: transformers applies them only when asked.

    Training leaves them there, and other tools apply them to every text. The token that pads stays in the settings.

    Raises:
        BundleError: The file is no JSON object.
    """
    path = folder / "tokenizer.json"
    with path.open(encoding="utf-8", errors="replace") as stream:
        head = stream.read(_HEAD)
    if all(re.search(rf'"{name}"\s*:\s*null', head) for name in ("truncation", "padding")):
        return  # the usual file, of up to 30 MB
    tokenizer = read_settings(path)
    padding = tokenizer.get("padding")
    if not tokenizer.get("truncation") and not padding:
        return
    path.unlink()  # it may be a link
    tokenizer |= {"truncation": None, "padding": None}
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    config = folder / "tokenizer_config.json"
    settings = read_settings(config)
    if isinstance(padding, dict) and padding.get("pad_token") and "pad_token" not in settings:
        settings["pad_token"] = padding["pad_token"]
        config.unlink(missing_ok=True)
        config.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def adds_tokens(folder: Path) -> bool:
    """Whether a model folder's tokenizer puts tokens of its own around a text, such as one for its beginning."""
    return int(open_tokenizer(folder / "tokenizer.json").num_special_tokens_to_add(is_pair=False)) > 0
