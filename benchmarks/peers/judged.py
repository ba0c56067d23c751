"""Asks compare about our bundles, in a process of its own, once per bundle and state of what plays it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
VERDICTS = {0: "match", 1: "mismatch"}


def judge(folder: Path, tolerances: Sequence[str], cases: Sequence[str]) -> list[dict[str, Any]]:
    """What ``cli.py compare`` says; a tolerance is asked only where those before it did not pass.

    Args:
        folder: A bundle without recorded vectors: PyTorch runs beside it.
        tolerances: Values of ``--tol``, in order.
        cases: Patterns of cases; none takes all.

    Returns:
        Per tolerance asked: ``tol``, ``verdict``, how many ``cases`` matched of all, and the ``worst`` difference.
    """
    # The manifest has the digest of every file of the bundle.
    key = hashlib.sha256((folder / "manifest.json").read_bytes() + sources("runners").encode()).hexdigest()
    records: list[dict[str, Any]] = []
    for tol in tolerances:
        note = folder.parent / f"{folder.name}.judged-{tol}.json"
        known = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}
        if (known.get("key"), known.get("asked")) != (key, list(cases)):
            known = {"key": key, "asked": list(cases), **_compare(folder, tol, cases, note.with_suffix(".report"))}
            note.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        records.append({name: known[name] for name in ("tol", "verdict", "cases", "worst")})
        if known["verdict"] == "match":
            break
    return records


def sources(*packages: str) -> str:
    """A digest of packages of this project: what they make or say may change with it."""
    digest = hashlib.sha256()
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _compare(folder: Path, tol: str, cases: Sequence[str], report: Path) -> dict[str, Any]:
    words = ["compare", str(folder), "--live", "--tol", tol, "--json", str(report)]
    words += [word for case in cases for word in ("--case", case)]
    report.unlink(missing_ok=True)
    done = subprocess.run([sys.executable, "cli.py", *words], cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
    verdict = VERDICTS.get(done.returncode, "error")
    if not report.exists():
        return {"tol": tol, "verdict": verdict, "cases": "–", "worst": "–"}
    found = json.loads(report.read_text(encoding="utf-8"))
    records = found["cases"]
    matched = sum(record["verdict"] == "match" for record in records)
    first = found["first_divergence"]
    worst = max((result["max_abs_diff"] for result in found["results"] if _finite(result)), default="–")
    where = f", the first in {first['tensor']} of {first['case']}" if first else ""
    shown = f"{worst:.1e}{where}" if isinstance(worst, float) else "–"
    return {"tol": tol, "verdict": verdict, "cases": f"{matched} of {len(records)}", "worst": shown}


def _finite(result: dict[str, Any]) -> bool:
    return isinstance(result.get("max_abs_diff"), (int, float))
