"""Compares decoding speed with other exporters on one checkpoint, every peer in a process and environment of its own.

    python benchmarks/peers/run.py CHECKPOINT --cache DIR [--peer NAME]... [--rounds 9] [--json FILE]

Each peer is a file beside this one: REQUIREMENTS, ``export(checkpoint, folder)`` and ``open(folder)``, which gives an
object with ``reset()`` and ``feed(ids) -> logits``. Rounds visit every peer in turn, so that a busy moment of the
machine meets them all. A peer that fails is listed with its last line.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# PyTorch comes first: what the others answer is compared with what it answers.
PEERS = (
    *("torch_eager", "torch_sdpa", *sorted(path.stem for path in HERE.glob("kvparity_*.py"))),
    *("mobius_onnx", "mobius_genai", "genai_builder", "transformers_onnx", "transformers_fused"),
    *("optimum_onnx", "llamacpp"),
)


class Worker:
    """A peer's process: one JSON request per line in, one JSON answer per line out."""

    def __init__(self, name: str, python: str, checkpoint: Path, folder: Path, threads: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        self.name = name
        self._log = (folder.parent / f"{name}.log").open("w+", encoding="utf-8")
        command = [python, str(HERE / "worker.py"), name, str(checkpoint), str(folder), str(threads)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, env=environment
        )

    def ask(self, **request: Any) -> Any:
        """Send a request, wait for its answer; raises RuntimeError with the peer's last line where it died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait()
            self._log.seek(0)
            lines = [text for text in self._log.read().splitlines() if text.strip()] or ["died without a word"]
            raise RuntimeError(reason(lines)[:160])
        return json.loads(line)

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def reason(lines: list[str]) -> str:
    """The line that says why; where an export was a process of its own, its error and not that it had one."""
    errors = [line for line in lines if re.match(r"[A-Za-z_.]+(Error|Exception)\b", line)]
    return next((line for line in reversed(errors) if not line.startswith("subprocess.")), lines[-1])


def environment(name: str, cache: Path, shared: bool) -> str:
    """The python of a peer's environment, made once; the current one for peers that need nothing else."""
    wanted = requirements(name)
    if not wanted:
        return sys.executable
    folder = cache / f"venv-{name.split('_')[0]}"
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True, system_site_packages=False)
        if shared:
            site = next((folder / "lib").glob("python3*")) / "site-packages"
            (site / "base.pth").write_text("\n".join(path for path in sys.path if "site-packages" in path))
        extra = ["--no-deps"] if shared else []
        subprocess.run([str(python), "-m", "pip", "install", "-q", *extra, *wanted], check=True)
    return str(python)


def requirements(name: str) -> list[str]:
    """REQUIREMENTS of a peer's file, read without importing it."""
    import ast

    for node in ast.parse((HERE / f"{name}.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "REQUIREMENTS":
            return list(ast.literal_eval(node.value))
    return []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--cache", type=Path, required=True, help="environments and exports are kept here")
    parser.add_argument("--peer", action="append", choices=PEERS, help="default: all")
    parser.add_argument("--contexts", type=int, nargs="+", default=[64, 512, 1000])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--share-site-packages", action="store_true", help="peers see this environment's packages")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="milliseconds per token against context, as SVG")
    parser.add_argument("--from-json", type=Path, help="measure nothing: table and plot of what an earlier run wrote")
    given = parser.parse_args()
    if given.from_json:
        show(json.loads(given.from_json.read_text(encoding="utf-8")), given)
        return 0
    given.cache.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, Any]] = {}
    workers: list[Worker] = []
    for name in given.peer or PEERS:
        if name == "llamacpp" and given.checkpoint.suffix != ".gguf":  # do not compile it for nothing
            results[name] = {"failed": "plays GGUF files only"}
            continue
        try:
            python = environment(name, given.cache.resolve(), given.share_site_packages)
            worker = Worker(name, python, given.checkpoint.resolve(), given.cache.resolve() / name, given.threads)
            started = time.perf_counter()
            results[name] = {**worker.ask(do="open"), "decode": {c: [] for c in given.contexts}, "prefill": []}
            print(f"{name}: ready after {time.perf_counter() - started:.1f} s", file=sys.stderr)
            workers.append(worker)
        except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
            results[name] = {"failed": str(error)}
            print(f"{name}: {error}", file=sys.stderr)
    check(workers, results, given.cache / "reference.npy")
    for _ in range(given.rounds):
        for worker in list(workers):
            try:
                visit(worker, results[worker.name], given.contexts, given.steps)
            except RuntimeError as error:
                results[worker.name] = {"failed": str(error)}
                workers.remove(worker)
    for worker in workers:
        worker.stop()
    show(results, given)
    return 0


def show(results: dict[str, dict[str, Any]], given: argparse.Namespace) -> None:
    """Print the table; write the files that were asked for."""
    for result in results.values():  # JSON has no numbers as keys
        if "decode" in result:
            result["decode"] = {int(context): seconds for context, seconds in result["decode"].items()}
    print(table(results, given.contexts))
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if given.plot:
        from plot import draw

        lines = {
            name: [quantile(result["decode"][context], 0.1) for context in given.contexts]
            for name, result in results.items()
            if "failed" not in result
        }
        draw(lines, given.contexts, "ms per token, fastest tenth", given.plot)


def visit(worker: Worker, result: dict[str, Any], contexts: list[int], steps: int) -> None:
    """Time one peer once."""
    result["prefill"].append(worker.ask(do="prefill", tokens=512))
    for context in contexts:
        result["decode"][context] += worker.ask(do="decode", context=context, steps=steps)


def check(workers: list[Worker], results: dict[str, dict[str, Any]], reference: Path) -> None:
    """Largest logit difference to PyTorch eager over 300 steps from 100 tokens on."""
    if not workers or workers[0].name != "torch_eager":
        return
    workers[0].ask(do="save", file=str(reference.resolve()))
    for worker in list(workers[1:]):
        try:
            results[worker.name]["off"] = worker.ask(do="check", file=str(reference.resolve()))
        except RuntimeError as error:
            results[worker.name] = {"failed": str(error)}
            workers.remove(worker)


def quantile(values: list[float], share: float) -> float:
    """A quantile of timings in milliseconds; the nearest value, no interpolation."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)] * 1000


def table(results: dict[str, dict[str, Any]], contexts: list[int]) -> str:
    """Markdown: median, and the fastest tenth, which a busy machine disturbs least; ratios to the best peer."""
    peers = [r for name, r in results.items() if "failed" not in r and not name.startswith("kvparity")]
    lines = [
        "| | export s | peak MB | bundle MB | load s | max Δ past the window | "
        + " | ".join(f"ms @{c} (fastest tenth)" for c in contexts)
        + " | prefill 512 ms |"
    ]
    lines.append("|---" * (7 + len(contexts)) + "|")
    for name, result in results.items():
        if "failed" in result:
            lines.append(f"| {name} | fails: {result['failed']} |" + " |" * (5 + len(contexts)))
            continue
        cells = [name, f"{result['export_s']:.1f}", f"{result['peak_mb']:.0f}", f"{result['mb']:.1f}"]
        cells += [f"{result['load_s']:.2f}", f"{result['off']:.1e}" if "off" in result else "reference"]
        for context in contexts:
            low = quantile(result["decode"][context], 0.1)
            best = min((quantile(peer["decode"][context], 0.1) for peer in peers), default=low)
            median = quantile(result["decode"][context], 0.5)
            cells.append(f"{median:.3f} ({low:.3f}) {low / best:.2f}x")
        cells.append(f"{quantile(result['prefill'], 0.5):.1f} ({quantile(result['prefill'], 0.1):.1f})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
