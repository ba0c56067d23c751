"""What the JavaScript hosts share, and the relay between the pipe and a page, without an engine."""

from __future__ import annotations

import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvparity.exporter.contract.errors import EngineUnavailableError
from kvparity.runners.base import RunnerInfo, load_engine
from kvparity.runners.engines import _chromium, _node
from kvparity.runners.isolation.wire import encode, read_frame
from tests.synthetic import make_bundle

JS = Path(_node.HOST).parent
NODE = shutil.which("node")

ECHO = """
import fs from "node:fs";
import { serve } from "%s/frames.mjs";
class Tensor { constructor(type, data, dims) { Object.assign(this, { type, data, dims }); } }
const whole = fs.readFileSync(0);
let at = 0;
const take = (count) => {
  if (at >= whole.length) process.exit(0);
  return whole.subarray(at, (at += count));
};
const run = async (graph, feeds) => {
  if (graph === "prefill") throw new RangeError("no such graph\\nand more");
  return feeds;
};
const open = async () => ({ Tensor, run, info: { version: "1", settings: { a: "b" } } });
await serve({ open, receive: async () => take, send: (pieces) => pieces.forEach((piece) => fs.writeSync(1, piece)) });
"""


def frames(data: bytes) -> list[Any]:
    at, found = 0, []

    def take(count: int) -> bytes:
        nonlocal at
        at += count
        return data[at - count : at]

    while at < len(data):
        found.append(read_frame(take))
    return found


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_tensors_of_every_dtype_and_shape_pass_through_javascript_unchanged(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "a": np.asarray([[1.5, -0.0, np.nan]], np.float32),
        "b": np.arange(6, dtype=np.int64).reshape(1, 2, 3) - 3,
        "c": np.zeros((1, 1, 0, 4), np.float32),
        "d": np.asarray([True, False]),
        "e": np.asarray(7, np.int32),
        "f": np.asarray([1 / 3], np.float64),
    }
    (tmp_path / "echo.mjs").write_text(ECHO % JS, encoding="utf-8")
    asked = [({"op": "open"}, {}), ({"op": "run", "graph": "decode"}, given), ({"op": "run", "graph": "prefill"}, {})]
    words = b"".join(b"".join(map(bytes, encode(header, tensors))) for header, tensors in asked)
    done = subprocess.run([str(NODE), tmp_path / "echo.mjs"], input=words, capture_output=True, check=True)
    opened, answered, failed = frames(done.stdout)
    assert opened[0]["info"] == {"version": "1", "settings": {"a": "b"}}
    assert answered[0]["seconds"] >= 0
    assert list(answered[1]) == list(given)
    for name, array in given.items():
        back = answered[1][name]
        assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes()), name
    assert failed[0]["error"] == {"kind": "RangeError", "message": "no such graph"}


def test_the_relay_hands_frames_to_the_page_and_answers_back_and_serves_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_chromium, "POLL", 0.05)
    (tmp_path / "modules").mkdir()
    (tmp_path / "secret").write_text("outside", encoding="utf-8")
    relay = _chromium.Relay(tmp_path / "modules")
    server = _chromium.make_server(relay)
    address = f"http://127.0.0.1:{server.server_address[1]}"
    with urllib.request.urlopen(f"{address}/frame") as answer:
        assert answer.status == 204
    relay.frames.put(b"work")
    with urllib.request.urlopen(f"{address}/frame") as answer:
        assert answer.read() == b"work"
    urllib.request.urlopen(urllib.request.Request(f"{address}/answer", b"done", method="POST")).close()
    assert relay.answers.get(timeout=1) == b"done"
    with urllib.request.urlopen(f"{address}/js/frames.mjs") as answer:
        assert answer.headers["Content-Type"] == "text/javascript"
    for path in ("/secret", "/modules/../secret", "/modules/%2e%2e/secret", "/bundle/manifest.json", "/js/../_node.py"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(address + path)
        assert caught.value.code == 404, path
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"provider": "cuda"}, "provider 'cuda' is unknown; known are wasm, webgpu"),
        ({"provider": "webgpu", "host": "node"}, "host 'node' is unknown; known are chromium"),
        ({"level": "most"}, "level 'most' is unknown"),
    ],
)
def test_a_web_session_that_makes_no_sense_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], words: str
) -> None:
    engine = load_engine("onnxruntime_web")
    monkeypatch.setattr(engine, "describe", lambda: RunnerInfo("onnxruntime_web", "1"))
    with pytest.raises(EngineUnavailableError, match=words):
        engine.open_session(make_bundle(tmp_path / "bundle", cases=()), settings)


def test_without_a_browser_the_runner_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("KVPARITY_CHROMIUM", raising=False)
    with pytest.raises(EngineUnavailableError, match="apt-get install chromium"):
        _chromium.chromium()


def test_a_browser_that_ends_ends_its_process_instead_of_hanging(tmp_path: Path) -> None:
    browser = tmp_path / "browser"
    browser.write_text("#!/bin/sh\nexit 3\n", encoding="utf-8")
    browser.chmod(0o755)
    code = "import sys; from kvparity.runners.engines._chromium import main; sys.exit(main(*sys.argv[1:]))"
    command = ["env", f"KVPARITY_CHROMIUM={browser}", sys.executable, "-c", code, str(tmp_path)]
    words = b"".join(map(bytes, encode({"op": "open", "bundle": str(tmp_path)})))
    done = subprocess.run(command, input=words, capture_output=True, timeout=30, cwd=JS.parents[2])
    assert done.returncode == 1
    assert b"the browser ended with code 3" in done.stderr


def test_the_hosts_are_files_of_the_package() -> None:
    assert {"frames.mjs", "node.mjs", "page.html", "sessions.mjs", "transformers.mjs"} <= {p.name for p in JS.iterdir()}
