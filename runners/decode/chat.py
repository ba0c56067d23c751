"""Chat templates, rendered in jinja2's sandbox: a template comes with a model and may be anybody's.

Templates are written for transformers' ``apply_chat_template``; what they find here is what they find there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from kvparity.exporter.contract.chat_templates import chat_template, special_tokens
from kvparity.exporter.contract.errors import BundleError

__all__ = ["chat_prompt", "chat_template"]


def chat_prompt(folder: Path, text: str) -> str:
    """A user's message as the model's template wants it, up to where the answer starts.

    Raises:
        BundleError: There is no template, or it does not render.
    """
    template = chat_template(folder)
    if template is None:
        raise BundleError(f"{folder}: has no chat template; pass --raw")
    messages = [{"role": "user", "content": text}]
    given: dict[str, Any] = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
    given |= special_tokens(folder)
    try:
        return _environment().from_string(template).render(given)
    except Exception as error:  # a template is a program: it may fail in any way
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BundleError(f"{folder}: its chat template does not render ({reason}); pass --raw") from error


def _environment() -> ImmutableSandboxedEnvironment:
    """jinja2's sandbox with what transformers adds (its ``utils/chat_template_utils.py``)."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now, "namespace": _Namespace}
    return environment


class _Generation(Extension):
    """``{% generation %}`` marks what the model wrote, for training; it leaves the text as it is."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 has it so)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    def _inside(self, caller: Callable[[], str]) -> str:
        return caller()


class _Namespace(Namespace):
    """jinja2's namespace without names that lead to Python's internals."""

    def __init__(*given: Any, **names: Any) -> None:  # a name may be "self"
        own, *first = given
        attributes = dict(*first, **names)
        for name in attributes:
            _refuse_private(name)
        Namespace.__init__(own, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: str) -> None:
    if name.startswith("_"):
        raise SecurityError(f"namespace(): {name!r} begins with an underscore")


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as it is: jinja2's own filter escapes ``<``, ``>``, ``&`` and ``'`` for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _refuse(message: str) -> None:
    raise ValueError(message)
