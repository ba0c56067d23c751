"""One peer's process: ``worker.py PEER CHECKPOINT FOLDER THREADS``; see run.py for what it is asked."""

from __future__ import annotations

import importlib
import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

LONGEST = 2048
DRIFT = 20  # tokens past a context that still count as that context
Request = dict[str, Any]


def main() -> None:
    name, checkpoint, folder, threads = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a peer prints must not reach the answers
    talk: Talk | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "open":
            talk, answer = opened(name, checkpoint, folder, threads)
        else:
            assert talk is not None
            answer = talk.answer(request)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def opened(name: str, checkpoint: Path, folder: Path, threads: int) -> tuple[Talk, dict[str, float]]:
    """Export where that was not done yet, load, play eight tokens; the answer says what it cost."""
    peer = importlib.import_module(name)
    cost = exported(peer, checkpoint, folder)
    start = time.perf_counter()
    talk = Talk(peer.open(folder if folder.exists() else checkpoint, threads))
    talk.feed_to(8)
    load = time.perf_counter() - start
    files = [path.stat().st_size for path in folder.rglob("*") if path.is_file()] if folder.exists() else []
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc/self/statm").exists() else 0
    resident = pages * resource.getpagesize() / 1e6
    size = float(getattr(talk.decoder, "bytes", 0))
    return talk, {"load_s": load, "mb": sum(files) / 1e6, "resident_mb": resident, "bytes": size, **cost}


def exported(peer: Any, checkpoint: Path, folder: Path) -> dict[str, float]:
    """Seconds and peak memory in MB of the largest process of the export, now or when it was made.

    A peer with a ``key`` is exported again when that changes.
    """
    note = folder.parent / f"{folder.name}.export.json"
    if not hasattr(peer, "export"):
        return {"export_s": 0.0, "peak_mb": 0.0}
    key = peer.key() if hasattr(peer, "key") else ""
    if not note.exists() or json.loads(note.read_text()).get("key", "") != key:
        for left in folder.parent.glob(f"{folder.name}.off-*.json"):  # what was found out about an earlier one
            left.unlink()
        shutil.rmtree(folder, ignore_errors=True)
        start = time.perf_counter()
        peer.export(checkpoint, folder)
        kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        peak = max(resource.getrusage(kind).ru_maxrss for kind in kinds) / 1024
        note.write_text(json.dumps({"export_s": time.perf_counter() - start, "peak_mb": peak, "key": key}))
    return {name: value for name, value in json.loads(note.read_text()).items() if name != "key"}


class Talk:
    """One conversation, and how far it is."""

    def __init__(self, decoder: Any) -> None:
        self.decoder = decoder
        self._ids = np.random.default_rng(0).integers(3, 1000, LONGEST)
        self._at = LONGEST

    def answer(self, request: Request) -> Any:
        """Do what run.py asks."""
        if request["do"] == "save":
            np.save(request["file"], self.walk(request["prompt"], request["steps"]))
            return None
        if request["do"] == "check":
            expected = np.load(request["file"], mmap_mode="r")
            return float(np.abs(self.walk(request["prompt"], request["steps"]) - expected).max())
        if request["do"] == "prefill":
            start = time.perf_counter()
            self.feed_to(request["tokens"], anew=True)
            return time.perf_counter() - start
        if request["do"] == "perplexity":
            return self.perplexity(np.asarray(request["ids"], np.int64))
        if request["do"] == "copy":
            return copies(request["times"])
        return self.steps(request["context"], request["steps"], request["warm"])

    def feed_to(self, length: int, anew: bool = False) -> Any:
        """Logits after the token before ``length``; the conversation goes on where it is shorter, unless begun anew."""
        if anew or self._at >= length:
            self.decoder.reset()
            self._at = 0
        start, self._at = self._at, length
        return self.decoder.feed(self._ids[start:length])

    def walk(self, prompt: int, count: int) -> Any:
        """Logits (count, vocab) of a prompt and count - 1 steps after it: past the model's window."""
        rows = [np.array(self.feed_to(prompt, anew=True), np.float32)]
        for length in range(prompt + 1, prompt + count):
            rows.append(np.array(self.feed_to(length), np.float32))
        return np.stack(rows)

    def perplexity(self, ids: Any) -> float:
        """Of a text's tokens after the first, a step each."""
        self.decoder.reset()
        self._at, losses = LONGEST, []
        for at in range(len(ids) - 1):
            logits = np.array(self.decoder.feed(ids[at : at + 1]), np.float64).ravel()
            logits -= logits.max()
            losses.append(np.log(np.exp(logits).sum()) - logits[ids[at + 1]])
        return float(np.exp(np.mean(losses)))

    def steps(self, context: int, count: int, warm: int) -> list[float]:
        """Seconds of decode steps at a context, after ``warm`` steps that refill the caches which others used."""
        if not context <= self._at <= context + DRIFT - count - warm:
            self.feed_to(context - warm)
        for _ in range(warm):
            self.feed_to(self._at + 1)
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            int(np.argmax(self.feed_to(self._at + 1)))
            seconds.append(time.perf_counter() - start)
        return seconds


def copies(times: int) -> list[float]:
    """Bytes per second of copying memory, 256 MB at a time."""
    block, copy = np.ones(1 << 28, np.uint8), np.empty(1 << 28, np.uint8)
    speeds = []
    for _ in range(times + 1):
        start = time.perf_counter()
        np.copyto(copy, block)
        speeds.append(block.nbytes / (time.perf_counter() - start))
    return speeds[1:]  # the first has pages to fetch


if __name__ == "__main__":
    main()
