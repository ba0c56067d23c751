"""One peer's process: ``worker.py PEER CHECKPOINT FOLDER THREADS``; see run.py for what it is asked."""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

LONGEST, PROMPT, WALK = 2048, 100, 300


def main() -> None:
    name, checkpoint, folder, threads = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a peer prints must not reach the answers
    peer = importlib.import_module(name)
    decoder: Any = None
    ids = np.random.default_rng(0).integers(3, 1000, LONGEST)
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "open":
            cost = exported(peer, checkpoint, folder)
            start = time.perf_counter()
            decoder = peer.open(folder if folder.exists() else checkpoint, threads)
            decoder.reset()
            decoder.feed(ids[:8])
            files = [path.stat().st_size for path in folder.rglob("*") if path.is_file()] if folder.exists() else []
            answer: Any = {"load_s": time.perf_counter() - start, "mb": sum(files) / 1e6, **cost}
        elif request["do"] == "save":
            np.save(request["file"], walk(decoder, ids))
            answer = None
        elif request["do"] == "check":
            answer = float(np.abs(walk(decoder, ids) - np.load(request["file"])).max())
        elif request["do"] == "prefill":
            decoder.reset()
            start = time.perf_counter()
            decoder.feed(ids[: request["tokens"]])
            answer = time.perf_counter() - start
        else:
            answer = steps(decoder, ids, request["context"], request["steps"])
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def exported(peer: Any, checkpoint: Path, folder: Path) -> dict[str, float]:
    """Seconds and peak memory in MB of the largest process of the export, now or when it was made."""
    note = folder.parent / f"{folder.name}.export.json"
    if not hasattr(peer, "export"):
        return {"export_s": 0.0, "peak_mb": 0.0}
    if not note.exists():
        start = time.perf_counter()
        peer.export(checkpoint, folder)
        kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        peak = max(resource.getrusage(kind).ru_maxrss for kind in kinds) / 1024
        note.write_text(json.dumps({"export_s": time.perf_counter() - start, "peak_mb": peak}))
    return dict(json.loads(note.read_text()))


def walk(decoder: Any, ids: Any) -> Any:
    """Logits (WALK, vocab) of a prompt of 100 tokens and WALK - 1 steps after it: past any window of interest."""
    decoder.reset()
    rows = [np.array(decoder.feed(ids[:PROMPT]), np.float32)]
    for index in range(PROMPT, PROMPT + WALK - 1):
        rows.append(np.array(decoder.feed(ids[index : index + 1]), np.float32))
    return np.stack(rows)


def steps(decoder: Any, ids: Any, context: int, count: int) -> list[float]:
    """Seconds of each decode step; the first after the prompt is not counted."""
    decoder.reset()
    decoder.feed(ids[: context - 1])
    decoder.feed(ids[context - 1 : context])
    seconds = []
    for index in range(context, context + count):
        start = time.perf_counter()
        int(np.argmax(decoder.feed(ids[index : index + 1])))
        seconds.append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    main()
