"""Compares decoding speed with other exporters on one checkpoint, every peer in a process and environment of its own.

    python benchmarks/peers/run.py CHECKPOINT --cache DIR [--peer NAME]... [--rounds 9] [--json FILE]

Each peer is a file beside this one: REQUIREMENTS, ``export(checkpoint, folder)`` and ``open(folder)``, which gives an
object with ``reset()`` and ``feed(ids) -> logits``. Rounds visit every peer in turn, so that a busy moment of the
machine meets them all; where they do not fit into memory at once, group by group, with kvparity_ort and the floor in
each. A peer that fails is listed with its last line. Exits 1 when a bundle of ours fails compare.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from judged import judge
from processes import HERE, Worker, constant, environment
from table import REFERENCE, Outcome, exit_code, put, quantile, text

FLOOR, TRUTH = "floor", "torch_eager"
FOUR_BITS = (REFERENCE, "kvparity_gguf", "kvparity_gguf_level4", "kvparity_int4", "llamacpp", "genai_int4")
PEERS = (
    *(REFERENCE, *sorted({path.stem for path in HERE.glob("kvparity_*.py")} - {*FOUR_BITS}), "genai_builder"),
    *(TRUTH, "torch_sdpa", "mobius_onnx", "mobius_genai", "transformers_onnx", "transformers_fused", "optimum_onnx"),
    *("llamacpp_f32", "llamacpp"),
)
PREFILL = 512


class Run:
    """One run: what was asked, and what was measured so far."""

    def __init__(self, given: argparse.Namespace) -> None:
        self._given = given
        self._cache: Path = given.cache.resolve()
        self._peers: dict[str, dict[str, Any]] = {}
        self._floor: dict[str, Any] = {}

    def outcome(self) -> Outcome:
        """Measure everything."""
        given = self._given
        self._cache.mkdir(parents=True, exist_ok=True)
        self._write_reference()
        group: list[Worker] = []
        for name in given.peer or (FOUR_BITS if given.goals == "4bit" else PEERS):
            worker = self._opened(name)
            if worker is None:
                continue
            group += [worker, *(self._opened_floor() if name == REFERENCE else ())]
            if given.prepare:
                group = self._kept(group, ())
            elif sum(self._about(worker)["resident_mb"] for worker in group) > given.most_mb:
                self._play(group)
                group = self._kept(group, (REFERENCE, FLOOR))
        if group and (len(self._peers) == 1 or any(worker.name not in (REFERENCE, FLOOR) for worker in group)):
            self._play(group)
        self._kept(group, ())
        made = {name: self._cache / name for name in self._peers if name.startswith("kvparity")}
        bundles = {name: folder for name, folder in made.items() if "failed" not in self._peers[name]}
        verdicts = {name: judge(folder, given.tol, given.case) for name, folder in bundles.items()}
        return Outcome(tuple(given.contexts), given.goals, self._peers, self._floor, verdicts)

    def _about(self, worker: Worker) -> dict[str, Any]:
        return self._floor if worker.name == FLOOR else self._peers[worker.name]

    def _worker(self, name: str) -> tuple[Worker, dict[str, Any]]:
        given = self._given
        checkpoint = given.gguf if constant(name, "PLAYS_GGUF") else given.checkpoint
        if checkpoint is None:
            raise RuntimeError("plays GGUF files only, and this checkpoint is none")
        environments = (given.environments or self._cache).resolve()
        python = environment(name, environments, given.share_site_packages)
        worker = Worker(name, python, checkpoint.resolve(), self._cache, given.threads)
        return worker, worker.ask(do="open")

    def _opened(self, name: str) -> Worker | None:
        started = time.perf_counter()
        try:
            worker, answer = self._worker(name)
            decode: dict[str, list[float]] = {str(context): [] for context in self._given.contexts}
            self._peers[name] = {**answer, "decode": decode, "prefill": [], "beside": {}, **self._off(worker)}
            if given := self._given.text:
                self._peers[name]["perplexity"] = worker.ask(do="perplexity", ids=self._tokens(given))
        except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
            self._fail(name, error)
            return None
        print(f"{name}: ready after {time.perf_counter() - started:.1f} s", file=sys.stderr)
        return worker

    def _opened_floor(self) -> list[Worker]:
        try:
            worker, answer = self._worker(FLOOR)
        except RuntimeError as error:
            print(f"{FLOOR}: {error}", file=sys.stderr)
            return []
        self._floor = {**answer, "decode": [], "prefill": [], "copy": []}
        return [worker]

    def _fail(self, name: str, error: Exception) -> None:
        self._peers[name] = {"failed": str(error)}
        print(f"{name}: {error}", file=sys.stderr)

    def _reference(self) -> Path:
        return self._cache / "reference-{}-{}.npy".format(*self._given.walk)

    def _write_reference(self) -> None:
        """What PyTorch answers on a prompt and the steps after it, once for all peers."""
        prompt, steps = self._given.walk
        if not self._reference().exists():
            worker, _ = self._worker(TRUTH)
            worker.ask(do="save", file=str(self._reference()), prompt=prompt, steps=steps)
            worker.stop()

    def _off(self, worker: Worker) -> dict[str, float]:
        """Largest logit difference to PyTorch eager over the walk; kept beside the export, until that is made anew."""
        prompt, steps = self._given.walk
        note = self._cache / f"{worker.name}.off-{prompt}-{steps}.json"
        if worker.name == TRUTH:
            return {}
        if not note.exists():
            answer = worker.ask(do="check", file=str(self._reference()), prompt=prompt, steps=steps)
            note.write_text(json.dumps(answer))
        return {"off": json.loads(note.read_text())}

    def _tokens(self, text: Path) -> list[int]:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self._given.checkpoint / "tokenizer.json"))
        ids: list[int] = tokenizer.encode(text.read_text(encoding="utf-8")).ids
        return ids[: self._given.tokens]

    def _kept(self, group: list[Worker], names: tuple[str, ...]) -> list[Worker]:
        for worker in group:
            if worker.name not in names:
                worker.stop()
        return [worker for worker in group if worker.name in names]

    def _play(self, group: list[Worker]) -> None:
        """Time the peers of one group, interleaved."""
        given = self._given
        print(f"playing {', '.join(worker.name for worker in group)}", file=sys.stderr)
        before = {id(seconds): len(seconds) for worker in group for seconds in self._lists(worker).values()}
        for _ in range(given.rounds):
            for context in given.contexts:
                if context == PREFILL:
                    self._visit(group, "prefill", do="prefill", tokens=PREFILL)
                for _ in range(given.turns):
                    self._visit(group, str(context), do="decode", context=context, steps=given.steps, warm=given.warm)
            if PREFILL not in given.contexts:
                self._visit(group, "prefill", do="prefill", tokens=PREFILL)
        self._compare_with_reference(group, before)

    def _visit(self, group: list[Worker], what: str, **request: Any) -> None:
        for worker in list(group):
            try:
                answer = worker.ask(**request)
                self._lists(worker)[what].extend(answer if isinstance(answer, list) else [answer])
                if worker.name == FLOOR and what == "prefill":
                    self._floor["copy"] += worker.ask(do="copy", times=3)
            except RuntimeError as error:
                self._fail(worker.name, error)
                worker.stop()
                group.remove(worker)

    def _lists(self, worker: Worker) -> dict[str, list[float]]:
        about = self._about(worker)
        if worker.name == FLOOR:  # the same products whatever the cache holds
            return {"prefill": about["prefill"], **dict.fromkeys(map(str, self._given.contexts), about["decode"])}
        return {"prefill": about["prefill"], **about["decode"]}

    def _compare_with_reference(self, group: list[Worker], before: dict[int, int]) -> None:
        """Note what the reference took in the same group, so that groups can be compared."""
        reference = next((worker for worker in group if worker.name == REFERENCE), None)
        if reference is None:
            return
        lists = self._lists(reference)
        beside = {what: quantile(seconds[before[id(seconds)] :], 0.1) for what, seconds in lists.items()}
        for worker in group:
            if worker is not reference and worker.name != FLOOR:
                self._peers[worker.name]["beside"] = beside
        self._peers[REFERENCE]["beside"] = {what: quantile(seconds, 0.1) for what, seconds in lists.items()}


def show(outcome: Outcome, given: argparse.Namespace) -> int:
    """Print the tables and write the files that were asked for; the exit code."""
    print(text(outcome))
    if given.into:
        given.into.write_text(put(outcome, given.into.read_text(encoding="utf-8")), encoding="utf-8")
    if given.json:
        given.json.write_text(json.dumps(asdict(outcome), indent=1) + "\n", encoding="utf-8")
    if given.plot:
        from plot import draw

        whats = list(map(str, outcome.contexts))
        lines = {name: [outcome.low(name, what) for what in whats] for name in outcome.peers}
        drawn = {name: [low for low in line if low is not None] for name, line in lines.items()}
        whole = {name: line for name, line in drawn.items() if len(line) == len(whats)}
        draw(whole, outcome.contexts, "ms per token, fastest tenth", given.plot)
    return exit_code(outcome)


def read(path: Path) -> Outcome:
    """What an earlier run wrote."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return replace(Outcome(**found), contexts=tuple(found["contexts"]))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--gguf", type=Path, help="the same checkpoint as a GGUF file, for llama.cpp")
    parser.add_argument("--cache", type=Path, required=True, help="environments and exports are kept here")
    parser.add_argument("--environments", type=Path, help="environments are kept here instead")
    parser.add_argument("--peer", action="append", choices=sorted({*PEERS, *FOUR_BITS}), help="default: all")
    parser.add_argument("--goals", choices=("tiny", "real", "4bit"), default="tiny")
    parser.add_argument("--text", type=Path, help="measure perplexity on this text too")
    parser.add_argument("--tokens", type=int, default=128, help="of the text")
    parser.add_argument("--contexts", type=int, nargs="+", default=[64, 512, 1000])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--turns", type=int, default=1, help="visits of every peer per context and round")
    parser.add_argument("--steps", type=int, default=20, help="decode steps per visit")
    parser.add_argument("--warm", type=int, default=16, help="steps before them that are not counted")
    parser.add_argument("--walk", type=int, nargs=2, default=[100, 300], help="prompt and steps that Δ is taken over")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--most-mb", type=float, default=6000.0, help="memory of the peers alive at once")
    parser.add_argument("--tol", action="append", help="tolerances of compare; one must pass  [default: 1e-4]")
    parser.add_argument("--case", action="append", help="cases of compare  [default: all]")
    parser.add_argument("--share-site-packages", action="store_true", help="peers see this environment's packages")
    parser.add_argument("--prepare", action="store_true", help="export, check, judge, one peer at a time; time nothing")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="milliseconds per token against context, as SVG")
    parser.add_argument("--into", type=Path, help="put the tables into a page, between <!-- GOALS --> and its end")
    parser.add_argument("--from-json", type=Path, help="measure nothing: table and plot of what an earlier run wrote")
    parser.add_argument("--onto", type=Path, help="keep the peers of an earlier run that this one does not measure")
    given = parser.parse_args()
    given.tol, given.case = given.tol or ["1e-4"], given.case or []
    return given


def main() -> int:
    given = arguments()
    if given.from_json:
        return show(read(given.from_json), given)
    outcome = Run(given).outcome()
    if given.onto:
        old = read(given.onto)
        peers, judged = {**old.peers, **outcome.peers}, {**old.judged, **outcome.judged}
        outcome = replace(outcome, peers=peers, judged=judged, floor=outcome.floor or old.floor)
    return show(outcome, given)


if __name__ == "__main__":
    sys.exit(main())
