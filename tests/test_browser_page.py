from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvparity.runners.isolation.process import engines_folder
from tests.synthetic import flip_exponent_bit, make_bundle

SERVE = Path(__file__).resolve().parents[1] / "examples" / "browser" / "serve.py"
MODULES = engines_folder() / "node" / "node_modules"
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)


def serve(bundle: Path, modules: Path) -> Iterator[str]:
    spec = importlib.util.spec_from_file_location("serve", SERVE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    server = module.make_server(bundle, modules)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "secret").write_text("outside", encoding="utf-8")
    yield from serve(make_bundle(tmp_path / "bundle", cases=()).root, tmp_path / "modules")


def test_the_page_and_the_bundle_are_served_isolated(address: str) -> None:
    with urllib.request.urlopen(f"{address}/") as answer:
        assert b"golden.js" in answer.read()
        assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    with urllib.request.urlopen(f"{address}/bundle/manifest.json") as answer:
        assert b"schema_version" in answer.read()
    with urllib.request.urlopen(f"{address}/examples/node/golden.js") as answer:
        assert "javascript" in answer.headers["Content-Type"]


@pytest.mark.parametrize("path", ["/bundle/../secret", "/bundle/%2e%2e/secret", "/secret", "/bundle//etc/passwd"])
def test_nothing_outside_is_served(address: str, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(address + path)
    assert caught.value.code == 404


@pytest.mark.engine
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)")
@pytest.mark.skipif(not MODULES.exists(), reason="needs onnxruntime-web (make engines)")
def test_headless_chromium_says_match_and_says_mismatch_of_a_changed_graph(tiny_copy: Path, tmp_path: Path) -> None:
    for address in serve(tiny_copy, MODULES):
        page = _dom(address, tmp_path)
        assert "<title>match" in page
        assert '<td class="ok">2 of 2</td>' in page
        flip_exponent_bit(tiny_copy / "model.safetensors", "model.norm.weight")
        assert "<title>mismatch" in _dom(address, tmp_path)


def _dom(address: str, profile: Path) -> str:
    command = [
        str(CHROMIUM),
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={profile / 'profile'}",
        "--virtual-time-budget=120000",
        "--dump-dom",
        f"{address}/?case=prefill-2&case=handoff-128",
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout


def test_serving_needs_the_standard_library_only() -> None:
    done = subprocess.run([sys.executable, "-I", "-S", str(SERVE), "--help"], capture_output=True, text=True)
    assert done.returncode == 0
