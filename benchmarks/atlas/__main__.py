"""Exporters × small models, judged: ``python -m benchmarks.atlas`` (``make atlas``), resumable item by item.

With words, regular expressions, the items ``EXPORTER / MODEL`` that one of them is found in. Rows are kept in
benchmarks/atlas/rows.json, and docs/atlas.md is written from them. A wrong cell is one that plain ONNX Runtime finds
wrong as well (plain.py).
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

import kvparity
from benchmarks.atlas.exporters import EXPORTERS, slug
from benchmarks.atlas.models import MODELS, write_model
from benchmarks.atlas.page import write_page
from kvparity.exporter.contract.errors import KvparityError
from kvparity.runners.report.report import Report

HERE = Path(__file__).resolve().parent
ROWS = HERE / "rows.json"
CASES = ("prefill-2", "prefill-40", "decode-across", "chunk-7", "batch-ragged")
LIMIT = 40  # tokens: five windows of 8
_EXPORT_SECONDS = 900
_VERSIONS = ("torch", "transformers", "onnxruntime", "onnxruntime-genai", "mobius-onnx", "optimum-onnx", "optimum")


@click.command()
@click.argument("words", nargs=-1)
@click.option(
    "--cache", type=click.Path(path_type=Path), default=Path(".venv/atlas"), help="Environments and packages."
)
@click.option("--share", is_flag=True, help="Environments see this one's packages.")
@click.option("--again", is_flag=True, help="Judge items that have a row as well.")
@click.option("--keep", is_flag=True, help="Keep the packages.")
def main(words: Sequence[str], cache: Path, share: bool, again: bool, keep: bool) -> None:
    """Export and judge what has no row yet."""
    work = cache.resolve()
    for name in EXPORTERS:
        for model in MODELS:
            item = f"{name} / {model.name}"
            known = _rows()
            if (item in known and not again) or (words and not any(re.search(word, item) for word in words)):
                continue
            checkpoint = write_model(model, work / "models" / slug(model.name))
            folder = work / slug(name) / checkpoint.name
            row = _row(name, folder, checkpoint, work, share)
            click.echo(f"{item}: {row['verdict']}, {row.get('why', '')}")
            ROWS.write_text(json.dumps({**_rows(), item: row}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            if not keep:
                shutil.rmtree(folder, ignore_errors=True)
    write_page(_rows())


def _rows() -> dict[str, Any]:
    return json.loads(ROWS.read_text(encoding="utf-8")) if ROWS.exists() else {}


def _row(name: str, folder: Path, checkpoint: Path, work: Path, share: bool) -> dict[str, Any]:
    """Everything about one item."""
    started = time.process_time()
    try:
        python = _python(name, work, share)
        versions = _versions(python)
        reason = _export(name, python, folder, checkpoint, work)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        return {"verdict": "not run", "why": str(error)[:200]}
    if reason:
        return {"verdict": "not exported", "why": reason.replace(str(work), "WORK")[:200], "versions": versions}
    row = {"versions": versions, **_judged(folder, checkpoint)}
    row["plain"] = json.loads(_output([sys.executable, str(HERE / "plain.py"), str(folder), str(checkpoint)]) or "{}")
    return {**row, "seconds": round(time.process_time() - started, 1)}


def _python(name: str, work: Path, share: bool) -> str:
    """The interpreter of an exporter's environment."""
    sys.path.insert(0, str(HERE.parent / "peers"))
    import processes

    return str(processes.environment(EXPORTERS[name][0], work, share))


def _export(name: str, python: str, folder: Path, checkpoint: Path, work: Path) -> str:
    """Why there is no package; empty where there is one."""
    failed = folder.with_suffix(".failed")
    if not folder.exists() and not failed.exists():
        words = [python, str(HERE / "exporters.py"), name, str(work), str(checkpoint)]
        subprocess.run(words, capture_output=True, timeout=_EXPORT_SECONDS, check=False)
    return failed.read_text(encoding="utf-8") if failed.exists() else "" if folder.exists() else "died without a word"


def _versions(python: str) -> dict[str, str]:
    """What the environment has of the packages that make a difference."""
    code = "import importlib.metadata as m, json, sys\nhere = {d.metadata['Name'] for d in m.distributions()}\n"
    code += "print(json.dumps({name: m.version(name) for name in sys.argv[1:] if name in here}))"
    return json.loads(_output([python, "-c", code, *_VERSIONS]) or "{}")


def _output(words: Sequence[str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout.strip().splitlines()[-1] if done.returncode == 0 and done.stdout.strip() else ""


def _judged(folder: Path, checkpoint: Path) -> dict[str, Any]:
    """What the judge says, by question."""
    try:
        report = kvparity.judge(folder, checkpoint, limit=LIMIT, cases=CASES)
    except KvparityError as error:
        return {"verdict": "not read", "why": str(error).replace(str(folder), "PACKAGE")[:300]}
    return {"verdict": report.verdict, "why": _why(report), "cells": _cells(report)}


def _why(report: Report) -> str:
    """The cause in a line: of the place, else the weights, else the first difference."""
    assert report.package is not None
    located = [item.sentence for item in report.locations if item.fault == "export"]
    faults = [f"{row.name}: {row.note}" for row in report.package.audit.faults]
    first = report.first_divergence
    return (located or faults or [first.sentence if first else ""])[0][:600]


def _cells(report: Report) -> dict[str, Any]:
    """Each question of the atlas: ``match``, ``mismatch`` with the largest difference, ``not offered``, ``error``."""
    assert report.package is not None
    offers = {offer.name: offer for offer in report.package.offers}
    results = [result for result in report.results if result.question == "gate"]
    cases = {
        "prefill": ("prefill-2",),
        "past the window": ("prefill-40", "decode-across"),
        "chunks": ("chunk-7",),
        "left padding": ("batch-ragged",),
    }
    cells: dict[str, Any] = {"fits": "match"}
    for question, names in cases.items():
        logits = [item for item in results if item.case in names and item.tensor == "logits"]
        errors = [item for item in report.cases if item.case in names and item.verdict == "error"]
        cells[question] = _cell(logits) if logits or not errors else f"error: {errors[0].message[:120]}"
    cells["caches"] = _cell([item for item in results if item.tensor != "logits" and item.case != "batch-ragged"])
    audit = report.package.audit
    constants = "; ".join(f"{row.name} {row.expected:.7g} as {row.found:.7g}" for row in audit.constants)
    faults = f"{len(audit.faults)} wrong" if audit.faults else f"{len(audit.weights)} found"
    cells["weights"] = faults + (f"; {constants}" if constants else "")
    cells["dtype"] = ", ".join(audit.codings) or "float32"
    cells["cost"] = report.package.cost
    cells["not offered"] = [offer.name for offer in offers.values() if not offer.offered]
    return cells


def _cell(results: Sequence[Any]) -> str:
    if not results:
        return "not offered"
    wrong = [item for item in results if item.verdict == "mismatch"]
    sizes = [item.max_abs_diff for item in wrong if isinstance(item.max_abs_diff, float)]
    return f"mismatch {max(sizes, default=float('nan')):.1e}" if wrong else "match"


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
