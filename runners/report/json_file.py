"""The report as JSON: the record itself, deterministic to the byte, and its published JSON Schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from kvparity.exporter.contract.errors import TraceError
from kvparity.runners.diff.records import SCHEMA_VERSION, ReportRecord

__all__ = ["json_report", "json_schema", "read_report"]

Kind = TypeVar("Kind", bound=ReportRecord)

_ADAPTER: TypeAdapter[ReportRecord] = TypeAdapter(ReportRecord)


def json_report(report: ReportRecord) -> str:
    """The report as JSON text: one line per top-level key, and one per element of a list."""
    data: dict[str, Any] = _ADAPTER.dump_python(report, mode="json")
    return "{\n" + ",\n".join(f"{json.dumps(key)}: {_value(value)}" for key, value in data.items()) + "\n}\n"


def read_report(path: Path, kind: type[Kind]) -> Kind:
    """Read what :func:`json_report` wrote.

    Raises:
        TraceError: It cannot be read, or is no report of this version.
    """
    wanted = "expected a report that `compare --json FILE` wrote"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error.strerror}); {wanted}") from error
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{path}: not readable JSON ({error}); {wanted}") from error
    found = data.get("schema_version") if isinstance(data, dict) else None
    if found != SCHEMA_VERSION:
        raise TraceError(f"{path}: schema_version {found!r}, expected {SCHEMA_VERSION}; {wanted} of this version")
    try:
        return TypeAdapter(kind).validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise TraceError(f"{path}: {place}: {first['msg']}; {wanted}") from error


def json_schema() -> str:
    """JSON Schema (draft 2020-12) of :func:`json_report`, as in docs/report.schema.json."""
    schema = _ADAPTER.json_schema(mode="serialization")
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(_line(item) for item in value) + "\n]"
    return _line(value)


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


if __name__ == "__main__":  # python -m kvparity.runners.report.json_file > docs/report.schema.json
    print(json_schema(), end="")
