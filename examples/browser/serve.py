"""Serves a bundle and the page that plays it: ``python examples/browser/serve.py BUNDLE --modules FOLDER``.

Open the printed address: the page loads both graphs in onnxruntime-web, replays the golden vectors, and says how far
each case is from PyTorch. ``?provider=webgpu`` uses the GPU where the browser has one, ``?case=NAME`` plays one case.
Standard library only; it listens on this machine alone, and sends the headers that WebAssembly threads need.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

EXAMPLES = Path(__file__).resolve().parent.parent


class Handler(SimpleHTTPRequestHandler):
    """Three folders under three prefixes, and nothing else."""

    extensions_map: ClassVar[dict[str, str]] = {
        **SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def __init__(self, *arguments: object, folders: dict[str, Path], **keywords: object) -> None:
        self._folders = folders
        super().__init__(*arguments, **keywords)  # type: ignore[arg-type]

    def translate_path(self, path: str) -> str:
        """The file of a URL; a path that leaves its folder has none."""
        clean = path.partition("?")[0]
        clean = "/examples/browser/index.html" if clean == "/" else clean
        for prefix, folder in self._folders.items():
            if clean.startswith(prefix):
                file = (folder / clean.removeprefix(prefix)).resolve()
                if file.is_relative_to(folder.resolve()):
                    return str(file)
        return str(EXAMPLES / "no such file")

    def end_headers(self) -> None:
        """Isolate the page, so that it may share memory between threads; keep no file, so that it tells of these."""
        self.send_header("Cache-Control", "no-store")
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *arguments: object) -> None:
        """Say nothing of each request."""


def make_server(bundle: Path, modules: Path, port: int = 0) -> ThreadingHTTPServer:
    """A server on the loopback address; port 0 takes a free one."""
    folders = {"/bundle/": bundle, "/node_modules/": modules, "/examples/": EXAMPLES}
    return ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, folders=folders))


def main() -> int:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--modules", type=Path, default=EXAMPLES / "node" / "node_modules", help="has onnxruntime-web")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    if not (given.modules / "onnxruntime-web").is_dir():
        parser.error(f"{given.modules} has no onnxruntime-web; npm install onnxruntime-web there")
    server = make_server(given.bundle, given.modules, given.port)
    print(f"http://127.0.0.1:{server.server_address[1]}/", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
