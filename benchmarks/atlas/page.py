"""docs/atlas.md from the rows of the atlas."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.atlas.exporters import EXPORTERS
from benchmarks.atlas.models import MODELS
from benchmarks.atlas.reproduce import FAULTS

__all__ = ["write_page"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "atlas.md"
QUESTIONS = ("fits", "prefill", "past the window", "chunks", "left padding", "caches", "weights", "dtype")
_WRONG = 1e-3  # a difference of logits that plain ONNX Runtime shows as well; right ones are below 1e-5
HEAD = """# The atlas: other exporters' packages, judged

Made by `make atlas` ({count} of {all} items run). Each exporter runs in an environment of its own, from PyPI, on small
seeded models (three layers, hidden size 64, window 8 where the family has one;
[models.py](../benchmarks/atlas/models.py)); `judge` says what each package is. **wrong** is said only where plain ONNX
Runtime beside transformers' own forward ([plain.py](../benchmarks/atlas/plain.py)) shows it too; what `judge` alone
shows is *unconfirmed*, as is what differs in a package of rounded weights, which plain ONNX Runtime cannot tell from
a fault. The number is the largest difference of logits or caches. *not offered*: the package does not take such calls,
which is no fault. *not run*: nobody ran it yet; it says nothing.

"""


def write_page(rows: Mapping[str, Any]) -> None:
    """Write the page."""
    lines = [HEAD.format(count=len(rows), all=len(EXPORTERS) * len(MODELS)), *_overview(rows), *_faults()]
    for exporter in EXPORTERS:
        found = {model.name: rows.get(f"{exporter} / {model.name}") for model in MODELS}
        lines += [f"## {exporter}\n", *_exporter(found)]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _overview(rows: Mapping[str, Any]) -> Iterator[str]:
    yield "| exporter | match | mismatch | not read | not exported | not run |"
    yield "|---|---|---|---|---|---|"
    for exporter in EXPORTERS:
        verdicts = [rows.get(f"{exporter} / {model.name}", {}).get("verdict", "not run") for model in MODELS]
        kinds = (("match",), ("mismatch",), ("not read", "error"), ("not exported",), ("not run",))
        yield f"| {exporter} | {' | '.join(str(sum(item in kind for item in verdicts)) for kind in kinds)} |"
    yield ""


def _faults() -> Iterator[str]:
    yield "## Faults\n"
    yield "Each by itself: [reproduce.py](../benchmarks/atlas/reproduce.py), which needs nothing of this project.\n"
    for fault in FAULTS:
        yield f"- **{fault.exporter}**: {fault.cause} (`python reproduce.py {fault.name}`)."
    yield ""


def _exporter(found: Mapping[str, Any]) -> Iterator[str]:
    versions: dict[str, str] = next((row["versions"] for row in found.values() if row and row.get("versions")), {})
    if versions:
        yield ", ".join(f"{name} {version}" for name, version in versions.items()) + ".\n"
    if not any(found.values()):
        yield "Not run.\n"
        return
    yield f"| model | {' | '.join(QUESTIONS)} |"
    yield f"|---{'|---' * len(QUESTIONS)}|"
    for model, row in found.items():
        yield f"| {model} | {' | '.join(_cells(row))} |"
    yield ""
    for model, row in found.items():
        if row and row["verdict"] not in ("match", "not run"):
            yield f"- {model}: {row['verdict']}. {_line(row.get('why', ''))}"
        if cost := _cost(row):
            yield f"- {model}, what rounding costs: {_line(cost)}."
    yield ""


def _cost(row: Mapping[str, Any] | None) -> str:
    """What rounded weights cost, in the judge's words; empty where none are rounded."""
    return str((row or {}).get("cells", {}).get("cost", ""))


def _cells(row: Mapping[str, Any] | None) -> Iterator[str]:
    if row is None or "cells" not in row:
        yield "not run" if row is None else row["verdict"]
        yield from ["–"] * (len(QUESTIONS) - 1)
        return
    for question in QUESTIONS:
        plain = (
            {} if _cost(row) else row.get("plain", {})
        )  # beside the checkpoint's weights, rounded ones differ anyway
        yield _cell(question, str(row["cells"].get(question, "–")), plain)


def _cell(question: str, text: str, plain: Mapping[str, Any]) -> str:
    if not text.startswith("mismatch"):
        return _line("right" if text == "match" else text)
    more = {"caches": ("steps", "chunks", "past the window"), "past the window": ("past the window", "steps")}
    keys = more.get(question, (question,))
    seen = [value for key in keys if isinstance(value := plain.get(key), float)]
    size = text.removeprefix("mismatch ")
    return f"**wrong** {size}" if any(value > _WRONG for value in seen) else f"*unconfirmed* {size}"


def _line(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")
