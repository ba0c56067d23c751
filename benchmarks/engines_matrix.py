"""Installs the engines, each in an environment of its own, and judges them all on the tiny bundle.

    python benchmarks/engines_matrix.py --install             # make the environments that are missing
    python benchmarks/engines_matrix.py                       # play every case on every engine, write docs/engines.md
    python benchmarks/engines_matrix.py --only openvino       # only these rows; the others are kept

Environments are folders in KVPARITY_ENGINES (.engines where unset). Results are kept in benchmarks/engines_matrix.json,
so that a run may be continued, and rows made on different days stand side by side with their own versions.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kvparity.exporter.contract.bundle import Bundle  # noqa: E402
from kvparity.exporter.contract.errors import KvparityError  # noqa: E402
from kvparity.runners.base import RunnerSpec, Session, engine_names, parse_runner  # noqa: E402
from kvparity.runners.compare.judge import JudgeOptions, judge  # noqa: E402
from kvparity.runners.compare.known_failures import load_known_failures, unexpected  # noqa: E402
from kvparity.runners.compare.timing import Timed  # noqa: E402
from kvparity.runners.isolation.process import engines_folder, open_runner  # noqa: E402

RESULTS = ROOT / "benchmarks" / "engines_matrix.json"
KNOWN = ROOT / "tests" / "known_failures"
BASE = ["numpy", "pydantic", "ml_dtypes"]
ORT_VERSIONS = ("1.20.1", "1.22.1", "1.24.4", "1.28.0")
WITHOUT_DEPENDENCIES = ("onnx2pytorch", "onnx2torch", "jaxonnxruntime")  # theirs are torchvision, and training
MARK = "installed.json"  # what an environment was made of; written last, so that a broken-off installation goes on
NODE = ["onnxruntime-node", "onnxruntime-web@1", "@huggingface/transformers"]  # @1: no pre-release

DYNAMIC, STATIC, FULL, BARE = "dynamic", "static", "full", "bare"
FLAGS = {
    DYNAMIC: [],
    STATIC: ["--layout", "static", "--max-len", "1024", "--chunk", "64"],
    FULL: ["--sliding-cache", "full"],
    BARE: ["--profile", "bare"],
}
ROWS: tuple[tuple[str, str], ...] = (
    ("ort:threads=1", DYNAMIC),
    ("ort:threads=1,level=none", DYNAMIC),
    *((f"ort:threads=1,env=ort-{version}", DYNAMIC) for version in ORT_VERSIONS),
    ("onnx_reference", DYNAMIC),
    ("openvino:threads=1", DYNAMIC),
    ("openvino:threads=1,precision=default", DYNAMIC),
    ("tract", DYNAMIC),
    ("nxrt", DYNAMIC),
    ("opencv:threads=1", DYNAMIC),
    ("mnn", DYNAMIC),
    ("iree", DYNAMIC),
    ("onnx2pytorch:threads=1", DYNAMIC),
    ("onnxruntime_node", DYNAMIC),
    ("onnxruntime_web", DYNAMIC),
    ("onnxruntime_web:host=chromium", DYNAMIC),
    ("onnxruntime_web:provider=webgpu", DYNAMIC),
    ("onnxruntime_web:provider=webgpu", BARE),
    ("transformersjs", DYNAMIC),
    ("jaxonnxruntime", DYNAMIC),
    ("onnxruntime_ggml:threads=1", DYNAMIC),
    ("onnxruntime_ggml:threads=1,weights=default", DYNAMIC),
    ("genai", FULL),
    ("onnx2torch:threads=1", BARE),
    ("ort:threads=1", STATIC),
    ("openvino:threads=1", STATIC),
    ("tract", STATIC),
    ("nxrt", STATIC),
    ("opencv:threads=1", STATIC),
    ("mnn", STATIC),
    ("iree", STATIC),
    ("onnxruntime_node", STATIC),
    ("onnxruntime_web", STATIC),
    ("onnxruntime_ggml:threads=1", STATIC),
    ("emx", STATIC),
    ("tvm", STATIC),
    ("litert", STATIC),
    ("tinygrad", STATIC),
)
# A new shape costs jaxonnxruntime seconds, a call of tinygrad half a second and one of a GPU in software as much: cases
# of many calls are left out.
SLOW = {
    "onnxruntime_web:provider=webgpu": (
        "prefill-[12]",
        "prefill-12*",
        "handoff-*",
        "batch-*",
        "chunk-12*",
        "chunk-cross",
        "special-tokens",
    ),
    "tinygrad": (
        "prefill-*",
        "handoff-*",
        "decode-[fo]*",
        "batch-*",
        "chunk-[ce]*",
        "chunk-12*",
        "special-tokens",
        "text",
    ),
    "jaxonnxruntime": ("prefill-*", "handoff-*", "batch-*", "chunk-[ce]*", "special-tokens"),
    "onnx_reference": ("[!p]*", "prefill-1*", "prefill-2"),
}


@dataclass
class Row:
    """One runner on one bundle."""

    runner: str
    layout: str
    version: str = ""
    settings: dict[str, str] = field(default_factory=dict)
    adapted: str = ""
    verdicts: dict[str, str] = field(default_factory=dict)
    differences: dict[str, float | str | None] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    milliseconds: float | None = None
    unavailable: str = ""
    known: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)


def play_row(bundle: Bundle, runner: str, layout: str) -> Row:
    """Judge one runner on every case of one bundle."""
    opened: list[Timed] = []

    def opener(bundle: Bundle, spec: RunnerSpec) -> Session:
        opened.append(Timed(open_runner(bundle, spec)))
        return opened[-1]

    spec = parse_runner(runner)
    cases = SLOW.get(runner, SLOW.get(spec.name, ()))
    report = judge(bundle, JudgeOptions((spec,), cases=cases, tol=1e-4), opener=opener)
    record = report.runners[0]
    row = Row(runner, layout, record.version, dict(record.settings), record.adapted)
    if not record.available:
        row.unavailable = record.message
    for case in report.cases:
        row.verdicts[case.case] = case.verdict
        row.differences[case.case] = case.max_abs_diff
        if case.message:
            row.messages[case.case] = case.message
    entries = load_known_failures(KNOWN)
    row.unexpected = unexpected(entries, runner, bundle.options, row.settings, row.verdicts)
    found = (
        item for item in entries for case in row.verdicts if item.expects(runner, bundle.options, row.settings, case)
    )
    row.known = sorted({item.reason for item in found})
    row.milliseconds = opened[0].take() if opened else None
    return row


def environments() -> dict[str, list[str]]:
    """What every engine's environment holds beside `BASE`: its extra in pyproject.toml; and older ONNX Runtimes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    return {
        **{name: extras[name] for name in engine_names() if name in extras},
        **{f"ort-{version}": [f"onnxruntime=={version}"] for version in ORT_VERSIONS},
    }


def install(only: list[str]) -> None:
    """Make the environments that are missing or half made; one that can't be made is left out, with the reason."""
    folder = engines_folder()
    folder.mkdir(parents=True, exist_ok=True)
    for name, packages in environments().items():
        wanted = json.dumps([*BASE, *packages])
        bare = [package for package in packages if package.startswith(WITHOUT_DEPENDENCIES)]
        mark = folder / name / MARK
        if (only and name not in only) or (mark.exists() and mark.read_text("utf-8") == wanted):
            continue
        started = time.perf_counter()
        print(f"installing {name}", file=sys.stderr, flush=True)
        try:
            subprocess.run([sys.executable, "-m", "venv", folder / name], check=True)
            pip = [str(folder / name / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
            subprocess.run([*pip, *BASE, *(package for package in packages if package not in bare)], check=True)
            if bare:
                subprocess.run([*pip, "--no-deps", *bare], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            shutil.rmtree(folder / name, ignore_errors=True)  # half an environment would be taken for the engine's
            print(f"  {name}: not installed ({error})", file=sys.stderr, flush=True)
            continue
        mark.write_text(wanted, "utf-8")
        print(f"  {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    mark = folder / "node" / MARK
    if (not only or "node" in only) and not (mark.exists() and mark.read_text("utf-8") == json.dumps(NODE)):
        install_node(folder / "node")


def install_node(folder: Path) -> None:
    """The npm packages; the native one would otherwise download more than it needs."""
    folder.mkdir(exist_ok=True)
    (folder / "package.json").write_text('{"private": true}\n', encoding="utf-8")
    environment = {**os.environ, "ONNXRUNTIME_NODE_INSTALL": "skip"}
    try:
        subprocess.run(["npm", "install", "--no-audit", "--no-fund", *NODE], cwd=folder, env=environment, check=True)
        (folder / MARK).write_text(json.dumps(NODE), "utf-8")
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"  node: not installed ({error})", file=sys.stderr)


def load_rows() -> list[Row]:
    return [Row(**row) for row in json.loads(RESULTS.read_text("utf-8"))] if RESULTS.exists() else []


def save_rows(rows: list[Row]) -> None:
    order = {place: index for index, place in enumerate(ROWS)}
    rows.sort(key=lambda row: order.get((row.runner, row.layout), len(order)))
    RESULTS.write_text(json.dumps([asdict(row) for row in rows], indent=1, sort_keys=True) + "\n", encoding="utf-8")


def bundles(arguments: Any) -> dict[str, Bundle]:
    """The bundles; exported from the shipped checkpoint where they are not given."""
    made: dict[str, Bundle] = {}
    for kind, flags in FLAGS.items():
        folder = getattr(arguments, kind) or ROOT / "artifacts" / f"engines-{kind}"
        if not folder.exists():
            subprocess.run([sys.executable, ROOT / "cli.py", "export", "-o", folder, *flags], check=True)
        made[kind] = Bundle.open(folder)
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true", help="make missing environments first")
    parser.add_argument("--only", action="append", default=[], help="a runner, with or without settings; repeatable")
    for kind, flags in FLAGS.items():
        parser.add_argument(f"--{kind}", type=Path, help=f"bundle exported with {' '.join(flags) or 'no options'}")
    parser.add_argument("--tables", action="store_true", help="only write docs/engines.md from what was measured")
    arguments = parser.parse_args()
    only = arguments.only
    if arguments.install:
        install(only)
    if not arguments.tables:
        measure(bundles(arguments), only)
    from benchmarks.engines_table import write_tables

    rows = load_rows()
    write_tables([asdict(row) for row in rows])
    surprises = [line for row in rows for line in row.unexpected]
    print("\n".join(surprises) or "every fault is a known one", file=sys.stderr)
    return 1 if surprises else 0


def measure(made: dict[str, Bundle], only: list[str]) -> None:
    """Play the rows that were asked for; each is saved when it is done."""
    for runner, layout in ROWS:
        if only and runner not in only and runner.partition(":")[0] not in only:
            continue
        print(f"{runner} ({layout})", file=sys.stderr, flush=True)
        try:
            row = play_row(made[layout], runner, layout)
        except KvparityError as error:
            row = Row(runner, layout, unavailable=str(error))
        rows = [old for old in load_rows() if (old.runner, old.layout) != (runner, layout)]
        save_rows([*rows, row])
        good = sum(verdict == "match" for verdict in row.verdicts.values())
        print(f"  {good}/{len(row.verdicts)} match {row.unavailable}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
