"""Every family × (export, compare, exact, decode past the window, batch, layouts and profiles), measured.

``python -m benchmarks.families`` measures every row that was not measured at this commit, so that an interrupted run
continues where it stopped; with names, the rows whose name contains one of them. Rows are kept in
benchmarks/families.json, and docs/families.md is written from them.
"""

from __future__ import annotations

import fcntl
import gc
import json
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import click

from kvparity.exporter.checkpoint.source import resolve
from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.cases import Case, left_padded, seeded_tokens
from kvparity.exporter.contract.errors import ExportError, KvparityError
from kvparity.exporter.contract.spec import ExportOptions
from kvparity.exporter.export import export
from kvparity.runners.base import RunnerSpec
from kvparity.runners.compare.judge import JudgeOptions, judge
from kvparity.runners.reference.record import record_cases
from kvparity.runners.report.report import Report
from tests.families import FAMILIES, Family, is_fault, make_config, save_checkpoint

ROOT = Path(__file__).resolve().parents[1]
ROWS = Path(__file__).with_suffix(".json")
PAGE = ROOT / "docs" / "families.md"
LIMIT = 40  # tokens: five windows of 8
CASES = ("prefill-40", "decode-across", "decode-far", "chunk-7", "batch-ragged", "batch-chunks")
OTHERS = {
    "static": ExportOptions(layout="static", max_len=48, chunk=8),
    "ort": ExportOptions(profile="ort"),
    "modern": ExportOptions(profile="modern"),
    "bare": ExportOptions(profile="bare"),
}


@dataclass(frozen=True)
class Row:
    """What was measured of one family; a cell is a verdict and a number, or why there is none."""

    family: str
    model_type: str
    pattern: str = ""
    window: int | None = None
    slots: int = 0
    features: tuple[str, ...] = ()
    refused: str = ""
    cells: dict[str, str] = field(default_factory=dict)
    commit: str = ""


def measure(family: Family, folder: Path) -> Row:
    """Make the checkpoint, export it every way, judge every bundle."""
    row = Row(family.name, family.model_type)
    checkpoint = resolve(str(save_checkpoint(make_config(family), folder / "hf")))
    try:
        bundle = _export(checkpoint, folder / "portable", ExportOptions())
    except ExportError as error:
        said = str(error).split(": ", 1)[1] if str(error).startswith("stage") else str(error)
        return replace(row, refused=said.removeprefix(f"{folder.name}: "))
    cells = dict(_judge(bundle))
    for name, options in OTHERS.items():
        cells[name] = _other(checkpoint, folder / name, options)
    model = bundle.model
    row = replace(row, pattern=model.pattern, window=model.window, slots=len(model.slots))
    return replace(row, features=model.features, cells=cells)


def _export(checkpoint: Any, target: Path, options: ExportOptions) -> Bundle:
    def record(bundle: Bundle, cases: Any, source: Any) -> Any:
        chosen = [case for case in cases if case.name in CASES]
        if not any(case.batch > 1 for case in chosen):  # the default ones are longer where there is no window
            tokens = left_padded(bundle.model, seeded_tokens(bundle.model, 24, 7, batch=3), (0, 5, 15))
            chosen.append(Case("batch-ragged", tokens, (12, 9, 1, 1, 1), (0, 5, 15)))
        return record_cases(bundle, chosen, source)

    return export(checkpoint, target, options, record=record, limit=LIMIT, in_process=True)


def _judge(bundle: Bundle) -> Iterator[tuple[str, str]]:
    """Cells of the plain bundle: ONNX Runtime at four times PyTorch's own error, the graph in float64 at 1e-10."""
    report = judge(bundle, _options())
    yield "compare", _worst(report, "gate", lambda case: True)
    yield "exact", _worst(report, "exact", lambda case: True)
    yield "decode", _worst(report, "gate", lambda case: case.startswith("decode"), bundle.model.window or 0)
    yield "batch", _worst(report, "gate", lambda case: case.startswith("batch"))


def _options() -> JudgeOptions:
    return JudgeOptions((RunnerSpec("ort", {"threads": "1"}),), tol="auto", budget=4.0, exact=True)


def _other(checkpoint: Any, target: Path, options: ExportOptions) -> str:
    try:
        bundle = _export(checkpoint, target, options)
        report = judge(bundle, _options())
    except KvparityError as error:
        return f"no: {error}"
    return f"{_worst(report, 'gate', lambda case: True)}; exact {_worst(report, 'exact', lambda case: True)}"


def _worst(report: Report, question: str, wanted: Callable[[str], bool], beyond: int = 0) -> str:
    """Largest difference over the cases wanted, and over how many times PyTorch's own error that is."""
    cases = [c for c in report.cases if c.question == question and wanted(c.case) and sum(c.chunks) > beyond]
    if not cases:
        return "not judged"
    failed = [case for case in cases if case.verdict != "match"]
    if failed:
        return f"**{failed[0].verdict}** {failed[0].case}: {failed[0].max_abs_diff} {failed[0].message}".strip()
    largest = max(float(case.max_abs_diff or 0) for case in cases)
    if question == "exact":
        return f"{largest:.0e}"
    ratio = max((budget.ratio_max for case in cases for budget in case.budget.values()), default=0.0)
    return f"{largest:.0e} ({ratio:.1f}×)"


def page(rows: Sequence[Row]) -> str:
    """The Markdown page."""
    columns = ("compare", "exact", "decode", "batch", *OTHERS)
    heads = {"decode": "decode past the window"}
    lines = [
        "# Families",
        "",
        "Written by `make families`: each family's own transformers model at a few thousand seeded parameters "
        f"(window 8, cases of up to {LIMIT} tokens), exported and compared with PyTorch.",
        "",
        "compare: ONNX Runtime's largest difference from float64 PyTorch, and in brackets how many times PyTorch's own "
        "float32 error that is (gate 4×). exact: the same graphs evaluated in float64 (gate 1e-10). Layers: s sliding, "
        "F full.",
        "",
        _commits(rows),
        "",
        "| family | layers | slots | " + " | ".join(heads.get(name, name) for name in columns) + " |",
        "|---|---|---|" + "---|" * len(columns),
    ]
    for row in rows:
        if not row.refused:
            cells = " | ".join(_cell(row.cells.get(name, "–")) for name in columns)
            lines.append(f"| {row.family} | {row.pattern} | {row.slots} | {cells} |")
    stopped = [row for row in rows if row.refused]
    faults = [row for row in stopped if is_fault(row.refused)]
    for title, group in (
        ("Refused, with the reason given:", [row for row in stopped if row not in faults]),
        ("Not exported yet, a fault of the exporter and no decision:", faults),
    ):
        if group:
            lines += ["", title, "", *(f"- {row.family}: {row.refused}" for row in group)]
    return "\n".join(lines) + "\n"


def _commits(rows: Sequence[Row]) -> str:
    """Where the rows come from; those of another commit than most are named."""
    counts = Counter(row.commit for row in rows)
    (most, _), *others = counts.most_common()
    named = [f"{commit} ({', '.join(row.family for row in rows if row.commit == commit)})" for commit, _ in others]
    return f"Measured at commit {most}{'; ' if named else ''}{'; '.join(named)}."


def _cell(text: str) -> str:
    """A refusal without the stage that gave it; a pipe would end the cell."""
    return text.removeprefix("no: ").replace("|", "/") if text.startswith("no: ") else text


def read_rows(path: Path) -> dict[str, Row]:
    """Rows by family; none where there is no file yet."""
    if not path.exists():
        return {}
    return {item["family"]: Row(**item) for item in json.loads(path.read_text(encoding="utf-8"))}


def put_row(row: Row, path: Path, target: Path) -> None:
    """Put one row in the file and on the page; all others stay, in the order of the families."""
    with Path(__file__).open() as lock:  # several runs may share the work
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = {**read_rows(path), row.family: row}
        rows = [known[family.name] for family in FAMILIES if family.name in known]
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps([asdict(item) for item in rows], indent=1) + "\n", encoding="utf-8")
        fresh.replace(path)
        target.write_text(page(rows), encoding="utf-8")


def _commit() -> str:
    """The commit that is measured; a + behind it where files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout

    code = ("exporter", "runners", "tests/families.py", "benchmarks/families.py")
    return git("rev-parse", "--short=10", "HEAD").strip() + ("+" if git("diff", "HEAD", "--stat", "--", *code) else "")


@click.command()
@click.argument("names", nargs=-1)
def main(names: tuple[str, ...]) -> None:
    """Measure families (those without a row of this commit, or whose name contains any of NAMES)."""
    commit = _commit()
    gc.disable()  # tracing makes millions of objects: a seventh of its time went into looking at them
    for family in FAMILIES:
        known = read_rows(ROWS).get(family.name)
        if not any(name in family.name for name in names) if names else known and known.commit == commit:
            continue
        with tempfile.TemporaryDirectory(prefix="kvparity-families-") as folder:
            row = replace(measure(family, Path(folder)), commit=commit)
        gc.collect()
        put_row(row, ROWS, PAGE)
        click.echo(f"{row.family}: {row.refused or row.cells}")


if __name__ == "__main__":
    main()
