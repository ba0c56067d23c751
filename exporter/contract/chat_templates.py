"""Chat templates of a model folder: which one transformers takes, and the special tokens that it may name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kvparity.exporter.contract.errors import BundleError
from kvparity.exporter.contract.model_files import read_settings

__all__ = ["NAMED_TEMPLATES", "SPECIAL_TOKENS", "TEMPLATE_FILE", "chat_template", "chat_templates", "special_tokens"]

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
TEMPLATE_FILE = "chat_template.jinja"
NAMED_TEMPLATES = "additional_chat_templates"  # folder of NAME.jinja
_DEFAULT = "default"


def chat_template(folder: Path) -> str | None:
    """The template that transformers renders a conversation without tools with; None where a model has none.

    Raises:
        BundleError: There are several and none is the default; a file is not what it should be.
    """
    found = chat_templates(folder)
    if not found or _DEFAULT in found:
        return found.get(_DEFAULT)
    raise BundleError(
        f"{folder}: has chat templates named {', '.join(sorted(found))} and none of them is the default; "
        f"write the one to use as {TEMPLATE_FILE}, or pass --raw"
    )


def chat_templates(folder: Path) -> dict[str, str]:
    """Every chat template by name.

    Order of ``PreTrainedTokenizerBase.from_pretrained``: template files before ``tokenizer_config.json``. A processor's
    ``chat_template.json`` (models that also see or hear) counts where the tokenizer has none.

    Raises:
        BundleError: A file is not what it should be.
    """
    files = {path.name.removesuffix(".jinja"): path for path in sorted((folder / NAMED_TEMPLATES).glob("*.jinja"))}
    files |= {_DEFAULT: folder / TEMPLATE_FILE} if (folder / TEMPLATE_FILE).is_file() else {}
    if files:
        return {name: _read(path) for name, path in files.items()}
    for name in ("tokenizer_config.json", "chat_template.json"):
        found = read_settings(folder / name).get("chat_template")
        if found:
            return _by_name(found, folder / name)
    return {}


def special_tokens(folder: Path) -> dict[str, str]:
    """Text of every special token that has a name, as transformers hands them to a template.

    ``special_tokens_map.json`` is of older folders and overrides, unless the settings list the added tokens.
    """
    settings = read_settings(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in settings:
        settings |= read_settings(folder / "special_tokens_map.json")
    for name in ("extra_special_tokens", "model_specific_special_tokens"):
        own = settings.get(name)
        settings |= own if isinstance(own, dict) else {}
    named = {name: _text(value) for name, value in settings.items() if name.endswith("_token")}
    return {name: text for name, text in named.items() if text is not None}


def _text(token: Any) -> str | None:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: not a chat template in UTF-8 ({error}); put it right, or pass --raw") from error


def _by_name(found: Any, path: Path) -> dict[str, str]:
    """Templates of a settings file: a text, an object of texts by name, or a list of names and texts."""
    if isinstance(found, str):
        return {_DEFAULT: found}
    listed = found if isinstance(found, list) else [found]
    pairs = found.items() if isinstance(found, dict) else [_pair(entry) for entry in listed]
    named = {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}
    if len(named) != len(found if isinstance(found, dict) else listed):
        raise BundleError(
            f"{path}: chat_template is neither a text nor a list of objects with name and template; "
            f"write the template as {TEMPLATE_FILE}"
        )
    return named


def _pair(entry: Any) -> tuple[Any, Any]:
    return (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
