"""One peer's process: ``worker.py PEER CHECKPOINT FOLDER THREADS``; see run.py for what it is asked."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

LONGEST = 2048


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
            export_s = exported(peer, checkpoint, folder)
            start = time.perf_counter()
            decoder = peer.open(folder if folder.exists() else checkpoint, threads)
            decoder.reset()
            decoder.feed(ids[:8])
            files = [path.stat().st_size for path in folder.rglob("*") if path.is_file()] if folder.exists() else []
            answer: Any = {"export_s": export_s, "load_s": time.perf_counter() - start, "mb": sum(files) / 1e6}
        elif request["do"] == "prefill":
            decoder.reset()
            start = time.perf_counter()
            decoder.feed(ids[: request["tokens"]])
            answer = time.perf_counter() - start
        else:
            answer = steps(decoder, ids, request["context"], request["steps"])
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def exported(peer: Any, checkpoint: Path, folder: Path) -> float:
    """Seconds that the export took, now or when it was made."""
    note = folder.parent / f"{folder.name}.seconds"
    if not hasattr(peer, "export"):
        return 0.0
    if not note.exists():
        start = time.perf_counter()
        peer.export(checkpoint, folder)
        note.write_text(str(time.perf_counter() - start))
    return float(note.read_text())


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
