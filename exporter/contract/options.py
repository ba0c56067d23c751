"""Options given by name, checked against the dataclass that holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from kvparity.exporter.contract.errors import OptionError

__all__ = ["checked"]

Options = TypeVar("Options")


def checked(options: type[Options], given: Mapping[str, Any]) -> Options:
    """An instance of an options dataclass; every value is checked by the type of its field.

    Args:
        options: The dataclass.
        given: Values by field name; what is left out has its default.

    Raises:
        OptionError: No field has that name, or a value has another type or is none of the field's choices.
    """
    known = [field.name for field in fields(options)]  # type: ignore[arg-type]
    unknown = [name for name in given if name not in known]
    if unknown:
        raise OptionError(f"option {unknown[0]!r} is unknown; known are {', '.join(known)}")
    try:
        return TypeAdapter(options).validate_python(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"][0].lower() + first["msg"][1:]
        raise OptionError(f"option {first['loc'][0]}: found {first['input']!r}, {message}") from None
