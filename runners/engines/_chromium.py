"""Runs a bundle in a headless Chromium: ``python start.py kvparity.runners.engines._chromium MODULES FLAG…``.

Speaks the frames of ``isolation/wire.py`` on stdin and stdout; a page (``_js/page.html``) fetches each frame from here,
runs the graph in onnxruntime-web, and posts what came out. Served on the loopback address only.
"""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from kvparity.exporter.contract.errors import EngineUnavailableError
from kvparity.runners.isolation.wire import encode, requests, write_all

__all__ = ["Relay", "chromium", "main", "make_server"]

JS = Path(__file__).with_name("_js")
POLL = 10.0  # seconds that a page's question for work stays open
_TYPES = {".html": "text/html", ".mjs": "text/javascript", ".wasm": "application/wasm"}
_NAMES = ("chromium", "chromium-browser", "google-chrome")


class Relay:
    """What the pipe and the page hand each other.

    Args:
        modules: The folder ``node_modules`` that has onnxruntime-web.
    """

    def __init__(self, modules: Path) -> None:
        self.folders = {"/js/": JS, "/modules/": modules}
        self.frames: queue.Queue[bytes] = queue.Queue()
        self.answers: queue.Queue[bytes] = queue.Queue()

    def file(self, path: str) -> Path | None:
        """The file of a URL's path; None where there is none, or it leaves its folder."""
        if path == "/":
            return JS / "page.html"
        for prefix, folder in self.folders.items():
            file = (folder / path.removeprefix(prefix)).resolve()
            if path.startswith(prefix) and file.is_relative_to(folder.resolve()) and file.is_file():
                return file
        return None


class _Handler(BaseHTTPRequestHandler):
    """Files, the next frame, and answers."""

    def __init__(self, *arguments: object, relay: Relay) -> None:
        self._relay = relay
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """A file, or the next frame; 204 where none came in time."""
        if self.path == "/frame":
            try:
                self._answer(200, self._relay.frames.get(timeout=POLL))
            except queue.Empty:
                self._answer(204)
            return
        file = self._relay.file(self.path)
        self._answer(200, file.read_bytes(), _TYPES.get(file.suffix, "")) if file else self._answer(404)

    def do_POST(self) -> None:
        """What the page computed."""
        self._relay.answers.put(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(204)

    def _answer(self, status: int, body: bytes = b"", kind: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind or "application/octet-stream")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")  # with the next: threads may share memory
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Say nothing of each request."""


def make_server(relay: Relay) -> ThreadingHTTPServer:
    """A server on a free port of the loopback address, already serving."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, relay=relay))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def chromium() -> str:
    """The browser: ``KVPARITY_CHROMIUM``, or the one installed.

    Raises:
        EngineUnavailableError: There is none.
    """
    names = (os.environ.get("KVPARITY_CHROMIUM", ""), *_NAMES)
    found = next((path for path in map(shutil.which, filter(None, names)) if path), None)
    if found is None:
        raise EngineUnavailableError("chromium is not installed; apt-get install chromium")
    return found


def main(modules: str, *flags: str) -> int:
    """Relay frames until the pipe closes or says so; the browser ends with this process."""
    relay = Relay(Path(modules))
    server = make_server(relay)
    with tempfile.TemporaryDirectory(prefix="kvparity-chromium-", ignore_cleanup_errors=True) as profile:
        words = [chromium(), "--headless=new", f"--user-data-dir={profile}", "--no-first-run", *flags]
        if os.geteuid() == 0:
            words.append("--no-sandbox")  # Chromium has none for root
        page = f"http://127.0.0.1:{server.server_address[1]}/"
        browser = subprocess.Popen([*words, page], stdin=subprocess.DEVNULL, stdout=2)
        try:
            return _relay(relay, browser)
        finally:
            browser.kill()
            browser.wait()


def _relay(relay: Relay, browser: subprocess.Popen[bytes]) -> int:
    parent = os.getppid()
    for header, tensors in requests(0):
        if header["op"] == "close":
            return 0
        if header["op"] == "open":
            relay.folders["/bundle/"] = Path(header["bundle"])
        relay.frames.put(b"".join(encode(header, tensors)))
        while True:
            try:
                write_all(1, [relay.answers.get(timeout=1)])
                break
            except queue.Empty:
                if os.getppid() != parent:
                    return 1  # nobody waits for the answer
                if browser.poll() is not None:
                    print(f"the browser ended with code {browser.returncode}", file=sys.stderr)
                    return 1
    return 0
