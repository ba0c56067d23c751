"""Chat templates, rendered in jinja2's sandbox: a template comes with a model and may be anybody's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kvparity.exporter.contract.errors import BundleError

__all__ = ["chat_prompt", "chat_template"]


def chat_template(folder: Path) -> str | None:
    """The template of a model folder: ``chat_template.jinja``, or the one inside ``tokenizer_config.json``."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = _tokenizer_config(folder).get("chat_template")
    return template if isinstance(template, str) else None


def chat_prompt(folder: Path, text: str) -> str:
    """A user's message as the model's template wants it, up to where the answer starts.

    Raises:
        BundleError: There is no template, or it does not render.
    """
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    template = chat_template(folder)
    if template is None:
        raise BundleError(f"{folder}: has no chat template; leave --chat out")
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _refuse
    config = _tokenizer_config(folder)
    special = {name: _text(config.get(name)) for name in ("bos_token", "eos_token")}
    messages = [{"role": "user", "content": text}]
    try:
        return environment.from_string(template).render(messages=messages, add_generation_prompt=True, **special)
    except (TemplateError, TypeError, ValueError) as error:
        raise BundleError(f"{folder}: its chat template does not render ({error}); pass --raw") from error


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return {}
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data


def _text(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def _refuse(message: str) -> None:
    raise ValueError(message)
