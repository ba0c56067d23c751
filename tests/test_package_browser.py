"""A transformers.js package in a headless Chromium, by the code of its own README: the same text as ``run``."""

from __future__ import annotations

import os
import queue
import re
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from kvparity.exporter.contract.errors import EngineUnavailableError
from kvparity.exporter.contract.package import write_package
from kvparity.exporter.contract.spec import ExportOptions
from kvparity.runners.base import load_engine
from kvparity.runners.engines import _node
from kvparity.runners.engines._chromium import chromium
from tests.packaging_bundles import TINY, export_to, zero_row
from tests.test_package_engines import said_by

pytest.importorskip("torch", reason="the exporter's extra is not installed")
PAGE = """<script type="importmap">
{"imports": {"@huggingface/transformers": "/node_modules/@huggingface/transformers/dist/transformers.min.js"}}
</script>
<script type="module">
const answer = (body) => fetch("/answer", { method: "POST", body });
addEventListener("unhandledrejection", ({ reason }) => answer(`failed: ${reason}`));
const transformers = await import("@huggingface/transformers");
transformers.env.backends.onnx.wasm.wasmPaths = "/node_modules/onnxruntime-web/dist/";
const console = { log: answer };
%s
</script>
"""


class Handler(SimpleHTTPRequestHandler):
    """Files of a folder; what the page says goes into a queue."""

    answers: queue.Queue[str]
    extensions_map = {  # noqa: RUF012
        ".mjs": "text/javascript",
        ".js": "text/javascript",
        ".wasm": "application/wasm",
    }

    def do_POST(self) -> None:
        self.answers.put(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(204)
        self.end_headers()

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


def text_in_browser(folder: Path) -> str:
    """What the page of a folder says."""

    class Answering(Handler):
        answers = queue.Queue()

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Answering, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    words = [chromium(), "--headless=new", "--disable-gpu", "--no-first-run", f"--user-data-dir={folder / 'profile'}"]
    words += ["--no-sandbox"] if os.geteuid() == 0 else []
    page = f"http://127.0.0.1:{server.server_address[1]}/page.html"
    browser = subprocess.Popen([*words, page], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        return Answering.answers.get(timeout=120)
    finally:
        browser.kill()
        browser.wait()
        server.shutdown()
        server.server_close()


@pytest.mark.engine
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_browser_says_what_run_says_and_another_text_with_one_row_zeroed(tmp_path: Path, dtype: Any) -> None:
    try:
        load_engine("transformersjs").describe()
        chromium()
    except EngineUnavailableError as error:
        pytest.skip(str(error))
    subject = said_by(export_to(TINY, tmp_path / "bundle", ExportOptions(dtype=dtype)))
    write_package(subject.bundle, "transformersjs", tmp_path / "package")
    (tmp_path / "node_modules").symlink_to(_node.home() / "node_modules")
    readme = (tmp_path / "package" / "README.md").read_text("utf-8")
    code = re.search(r"```js\n(.*?)```", readme, flags=re.S)
    assert code is not None
    (tmp_path / "page.html").write_text(PAGE % code[1], encoding="utf-8")
    assert text_in_browser(tmp_path) == subject.text
    zero_row(next((tmp_path / "package" / "onnx").glob("*_data")), subject.said.tokens[0])
    assert text_in_browser(tmp_path) not in ("", subject.text)
