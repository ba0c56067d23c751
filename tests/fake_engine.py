"""An engine's process for tests: the numpy decoder behind the frames, misbehaving as its argument says."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np  # noqa: E402

from kvparity.runners.isolation.wire import encode, requests, write_all  # noqa: E402
from tests.synthetic import Decoder  # noqa: E402


def main(mode: str) -> int:
    session = Decoder()
    calls = 0
    for header, tensors in requests(0):
        if header["op"] == "close":
            return 0
        if header["op"] != "run":
            info = {"name": "fake", "version": "1", "settings": {"mode": mode}, "adapted": "", "layout": ""}
            write_all(1, encode({"info": info}))
            continue
        calls += 1
        if calls == 2:
            misbehave(mode)
        if mode == "raises":
            write_all(1, encode({"error": {"kind": "RuntimeError", "message": "kernel not found"}}))
            continue
        write_all(1, encode({"seconds": 0.25}, session.run(header["graph"], tensors)))
    return 0


def misbehave(mode: str) -> None:
    if mode == "aborts":
        print("thread 'main' panicked: index out of bounds", file=sys.stderr, flush=True)
        os.abort()
    if mode == "exits":
        os._exit(7)
    if mode == "hangs":
        time.sleep(600)
    if mode == "babbles":
        os.write(1, b"\x00\x00\x00\x00 not a frame")
        os._exit(0)
    if mode == "huge":
        write_all(1, encode({"seconds": 0.0}, {"logits": np.zeros((3_000_000,), np.float32)}))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
