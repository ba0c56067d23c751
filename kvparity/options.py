"""Command-line options made from the dataclass or function that takes them: type, choices, default and help."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import click

__all__ = ["described", "options_of"]

Command = Callable[..., Any]


def options_of(
    source: Callable[..., Any], *, leave: tuple[str, ...] = (), **differing: Mapping[str, Any]
) -> Callable[[Command], Command]:
    """A decorator that gives a command one option per field of a dataclass, or per keyword of a function.

    A ``Literal`` is a choice, a ``bool`` a flag, a tuple an option that may be repeated. The help is what the docstring
    of ``source`` says of the field.

    Args:
        source: The dataclass or the function.
        leave: Names that are no options.
        **differing: By name, what :class:`click.Option` gets otherwise; ``flags`` are its spellings.
    """
    told = described(source)
    options = []
    for name, parameter in inspect.signature(source).parameters.items():
        if name not in leave and parameter.kind is not parameter.VAR_KEYWORD:
            given = {"help": told.get(name), **_settings(source, parameter), **differing.get(name, {})}
            flags = given.pop("flags", [f"--{name.replace('_', '-')}"])
            options.append(click.option(*flags, name, **given))

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def described(source: Callable[..., Any]) -> dict[str, str]:
    """What the docstring of a dataclass or a function says of each of its names, as one plain sentence."""
    text = inspect.getdoc(source) or ""
    section = re.search(r"^(?:Args|Attributes):\n((?:    .*\n?|\n)+)", text, flags=re.M)
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section[1] if section else "", flags=re.M)
    return {name: re.sub(r"\s+", " ", words).replace("`", "") for name, words in entries}


def _settings(source: Callable[..., Any], parameter: inspect.Parameter) -> dict[str, Any]:
    """Type, default and the like, from an annotation."""
    kind = eval(parameter.annotation, vars(sys.modules[source.__module__]))  # of our own source, evaluated one by one
    if get_origin(kind) in (Union, UnionType):
        kind = next(item for item in get_args(kind) if item is not NoneType)
    default = parameter.default
    shown: dict[str, Any] = {"default": default, "show_default": default not in (None, (), "")}
    if kind is bool:
        return {"is_flag": True}
    if get_origin(kind) is Literal:
        return {**shown, **_choice(get_args(kind)), "default": str(default)}
    if get_origin(kind) is tuple:
        return {**shown, "multiple": True, "type": get_args(kind)[0]}
    return {**shown, "type": click.Path(path_type=Path) if kind is Path else kind}


def _choice(choices: tuple[Any, ...]) -> dict[str, Any]:
    """A choice of words or of numbers."""
    by_name = {str(choice): choice for choice in choices}
    return {"type": click.Choice(list(by_name)), "callback": lambda context, option, value: by_name.get(value, value)}
