"""Every architecture of the installed transformers as a tiny seeded checkpoint: exported, compared, or refused and why.

``python -m benchmarks.architectures`` measures every entry without a row (``--again`` those that do not match as well),
each in a process of its own with a time limit, so that an interrupted run continues where it stopped; with names, those
entries. Rows are kept in runners/inspect/architectures.json, which `list families` prints; docs/architectures.md is
written from it.
"""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import subprocess
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click

from tests.architectures import causal_types, multimodal_types, save_architecture

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "runners" / "inspect" / "architectures.json"
PAGE = ROOT / "docs" / "architectures.md"
LIMIT = 40  # tokens: five windows of 8
CASES = ("prefill-40", "decode-across", "chunk-7", "batch-ragged", "batch-chunks")
QUICK = (  # one of each kind
    *("llama", "gpt2", "bloom", "falcon", "bert", "deepseek_v2", "llama4_text", "gpt_oss", "dbrx", "gemma4_text"),
    *("mistral3", "qwen2_vl", "aya_vision", "bart", "rwkv"),
)
_INTERNAL = (  # what a message holds that tells of a fault and not of a decision
    *("Error:", "Error(", "Exception", "Traceback", "fake", "Fake", "object has no attribute", "NoneType", "_Watch"),
    *("cannot be traced", "Unrecognized configuration", "CastLike", "are not in profile", "torch.export", "Tensor("),
)


@dataclass(frozen=True)
class Row:
    """What became of one entry: ``match``, ``mismatch``, ``refused``, ``unclear`` or ``not built``."""

    name: str
    group: str
    outcome: str
    reason: str = ""
    architecture: str = ""
    pattern: str = ""
    slots: int = 0
    compare: str = ""
    exact: str = ""
    seconds: float = 0.0
    commit: str = ""


def measure(name: str, group: str, folder: Path) -> Row:
    """Make the checkpoint, export it and judge the bundle."""
    from kvparity.exporter.checkpoint.source import resolve
    from kvparity.exporter.contract.errors import KvparityError
    from kvparity.exporter.contract.spec import ExportOptions
    from kvparity.exporter.export import export
    from kvparity.runners.base import RunnerSpec
    from kvparity.runners.compare.judge import JudgeOptions, judge

    row = Row(name, group, "unclear")
    try:
        save_architecture(name, folder / "hf", multimodal=group == "multimodal")
    except Exception as error:
        return replace(row, outcome="not built", reason=_line(f"{type(error).__name__}: {error}"))
    try:
        bundle = export(
            resolve(str(folder / "hf")),
            folder / "bundle",
            ExportOptions(),
            record=_record,
            limit=LIMIT,
            in_process=True,
        )
        model = bundle.model
        row = replace(row, architecture=model.architecture, pattern=model.pattern, slots=len(model.slots))
        options = JudgeOptions((RunnerSpec("ort", {"threads": "1"}),), tol="auto", budget=4.0, exact=True)
        report = judge(bundle, options)
    except KvparityError as error:
        reason = _line(str(error)).replace(f"{folder.name}: ", "").replace("hf: ", "")
        outcome = "unclear" if any(word in reason for word in _INTERNAL) else "refused"
        return replace(row, outcome=outcome, reason=reason)
    except Exception as error:
        if os.environ.get("TRACEBACK"):
            traceback.print_exc()
        return replace(row, reason=_line(f"{type(error).__name__}: {error}"))
    return _verdict(row, report)


def _record(bundle: Any, cases: Any, files: Any) -> Any:
    from kvparity.runners.reference.record import record_cases

    chosen = [case for case in cases if case.name in CASES]
    return record_cases(bundle, chosen, files)


def _verdict(row: Row, report: Any) -> Row:
    cells, outcome, reason = {}, "match", ""
    for question in ("gate", "exact"):
        cases = [case for case in report.cases if case.question == question]
        failed = next((case for case in cases if case.verdict != "match"), None)
        if failed is not None or not cases:
            outcome = "mismatch" if failed is not None and failed.verdict == "mismatch" else "unclear"
            said = f"{failed.case}: {failed.verdict} {failed.max_abs_diff} {failed.message}" if failed else "not judged"
            reason = reason or _line(f"{question} {said}")
        largest = max((float(case.max_abs_diff or 0) for case in cases), default=0.0)
        ratio = max((budget.ratio_max for case in cases for budget in case.budget.values()), default=0.0)
        cells[question] = f"{largest:.0e}" + (f" ({ratio:.1f}×)" if question == "gate" else "")
    return replace(row, outcome=outcome, reason=reason, compare=cells["gate"], exact=cells["exact"])


def _line(text: str) -> str:
    return " ".join(text.split())[:400]


def run_one(name: str, group: str, limit: float) -> Row:
    """Measure in a forked process; one that takes longer than ``limit`` seconds, or dies, is unclear."""
    context = multiprocessing.get_context("fork")
    near, far = context.Pipe()

    def work() -> None:
        import logging

        logging.disable(logging.WARNING)
        with tempfile.TemporaryDirectory(prefix="kvparity-arch-") as folder:
            far.send(measure(name, group, Path(folder)))

    start = time.perf_counter()
    process = context.Process(target=work)
    process.start()
    row = Row(name, group, "unclear", f"took longer than {limit:.0f} s")
    try:
        if near.poll(limit):
            row = near.recv()
    except EOFError:
        row = replace(row, reason="the process died")
    finally:
        process.kill() if not near.closed and row.reason.startswith("took") else None
        process.join()
    return replace(row, seconds=round(time.perf_counter() - start, 1))


def read_rows(path: Path = ROWS) -> dict[str, Row]:
    """Rows by name."""
    if not path.exists():
        return {}
    return {item["name"]: Row(**item) for item in json.loads(path.read_text(encoding="utf-8"))}


def put_row(row: Row, path: Path = ROWS, target: Path = PAGE) -> None:
    """Put one row in the file and on the page; several runs may share the work."""
    with Path(__file__).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = {**read_rows(path), row.name: row}
        rows = [known[name] for name in (*causal_types(), *multimodal_types()) if name in known]
        fresh = path.with_suffix(".new")
        fresh.write_text("[\n" + ",\n".join(json.dumps(asdict(item)) for item in rows) + "\n]\n", encoding="utf-8")
        fresh.replace(path)
        target.write_text(page(rows), encoding="utf-8")


def page(rows: Sequence[Row]) -> str:
    """The Markdown page."""
    lines = [
        "# Architectures",
        "",
        "Written by `python -m benchmarks.architectures`: one tiny seeded checkpoint for every architecture that the "
        "installed transformers maps to a causal or a multimodal language model, exported and compared with PyTorch.",
        "",
        "compare: ONNX Runtime's largest difference from float64 PyTorch, and in brackets how many times PyTorch's own "
        "float32 error that is (gate 4×). exact: the same graphs evaluated in float64 (gate 1e-10).",
    ]
    titles = {"causal": "Causal language models", "multimodal": "Text parts of multimodal models"}
    totals = {"causal": len(causal_types()), "multimodal": len(multimodal_types())}
    for group, title in titles.items():
        here = [row for row in rows if row.group == group]
        commits = Counter(row.commit for row in here)
        measured = ", ".join(f"{count} at {commit}" for commit, count in commits.most_common())
        counts = Counter(row.outcome for row in here)
        said = ", ".join(f"{counts[key]} {key}" for key in sorted(counts, key=lambda key: -counts[key]))
        lines += ["", f"## {title}", ""]
        lines += [f"{len(here)} of {totals[group]} entries are measured ({measured}): {said}.", ""]
        lines += ["| entry | class | layers | slots | compare | exact |", "|---|---|---|---|---|---|"]
        lines += [
            f"| {row.name} | {row.architecture} | {row.pattern} | {row.slots} | {row.compare} | {row.exact} |"
            for row in here
            if row.outcome == "match"
        ]
        others = [row for row in here if row.outcome != "match"]
        if others:
            lines += ["", "| entry | outcome | reason |", "|---|---|---|"]
            lines += [f"| {row.name} | {row.outcome} | {row.reason.replace('|', '/')} |" for row in others]
    return "\n".join(lines) + "\n"


def _commit() -> str:
    words = ["git", "-C", str(ROOT), "rev-parse", "--short=10", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


@click.command()
@click.argument("names", nargs=-1)
@click.option("--again", is_flag=True, help="Also entries that were measured and do not match.")
@click.option("--quick", is_flag=True, help="One entry of each kind; rows are printed and not kept.")
@click.option("--limit", default=300.0, help="Seconds for one entry.")
@click.option("--dry", is_flag=True, help="Print rows and do not keep them.")
def main(names: tuple[str, ...], again: bool, quick: bool, limit: float, dry: bool) -> None:
    """Measure entries that have no row, or NAMES."""
    import torch

    import kvparity.exporter.export
    import kvparity.runners.compare.judge  # noqa: F401  (loaded once, before the forks)

    torch.set_num_threads(1)
    entries = {**dict.fromkeys(causal_types(), "causal"), **dict.fromkeys(multimodal_types(), "multimodal")}
    chosen, commit = QUICK if quick else names, _commit()
    for name, group in entries.items():
        known = read_rows().get(name)
        if name not in chosen if chosen else known and not (again and known.outcome != "match"):
            continue
        row = replace(run_one(name, group, limit), commit=commit)
        if not (quick or dry):
            put_row(row)
        click.echo(f"{row.outcome:9} {row.name}: {row.reason or row.compare} [{row.seconds} s]")


if __name__ == "__main__":
    main()
