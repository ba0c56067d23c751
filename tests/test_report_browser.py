"""The HTML report in a real browser: it draws itself, complains about nothing, and asks the network for nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from kvparity.runners.base import RunnerSpec
from kvparity.runners.compare.judge import JudgeOptions, judge
from kvparity.runners.report.html import html_report
from tests.synthetic import Decoder, make_bundle

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
ERRANDS = ("accounts.google.com", "clients2.google.com", "update.googleapis.com", "www.google.com/async")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --enable-logging=stderr --window-size=1200,2000"
).split()


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)")
def test_the_page_renders_without_complaint_or_request(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    options = JudgeOptions((RunnerSpec("ort"),))
    report = judge(bundle, options, opener=lambda _bundle, _spec: Decoder(window_shift=1))
    page, log, picture = tmp_path / "report.html", tmp_path / "net.json", tmp_path / "report.png"
    page.write_text(html_report(report), encoding="utf-8")
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}"]
    command += [f"--screenshot={picture}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert picture.stat().st_size > 20_000, done.stderr
    assert "CONSOLE" not in done.stderr
    assert not [url for url in requested(log) if url.startswith(("http:", "https:", "ws:", "wss:")) and ours(url)]


def requested(log: Path) -> list[str]:
    """Every URL that the browser's network log mentions."""
    text = log.read_text(encoding="utf-8")
    events = json.loads(text if text.rstrip().endswith("}") else text.rstrip().rstrip(",") + "]}")["events"]
    urls = [event.get("params", {}).get("url", "") for event in events if isinstance(event.get("params"), dict)]
    return [url for url in urls if isinstance(url, str)]


def ours(url: str) -> bool:
    """Not one of the browser's own errands, which no flag turns off."""
    return not any(f"//{host}/" in url for host in ERRANDS)
