"""The report as JSON: the record itself, deterministic to the byte, and its published JSON Schema."""

from __future__ import annotations

import json
from typing import Any

from pydantic import TypeAdapter

from kvparity.runners.diff.records import ReportRecord

__all__ = ["json_report", "json_schema"]

_ADAPTER: TypeAdapter[ReportRecord] = TypeAdapter(ReportRecord)


def json_report(report: ReportRecord) -> str:
    """The report as JSON text: one line per top-level key, and one per element of a list."""
    data: dict[str, Any] = _ADAPTER.dump_python(report, mode="json")
    return "{\n" + ",\n".join(f"{json.dumps(key)}: {_value(value)}" for key, value in data.items()) + "\n}\n"


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
