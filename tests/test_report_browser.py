"""The HTML report in a real browser: it draws itself, complains about nothing, and asks the network for nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from kvparity.exporter.contract.bundle import Bundle
from kvparity.runners.base import RunnerSpec
from kvparity.runners.compare.judge import JudgeOptions, judge
from kvparity.runners.report.html import html_report
from kvparity.runners.report.report import Report
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


def many_engines(folder: Path) -> Report:
    """All cases on 20 engines, the last of which is wrong past the window."""
    bundle = make_bundle(folder / "bundle")

    def opener(_bundle: Bundle, spec: RunnerSpec) -> Decoder:
        return Decoder(window_shift=int(spec.options["level"] == "19"))

    specs = tuple(RunnerSpec("ort", {"level": str(index)}) for index in range(20))
    return judge(bundle, JudgeOptions(specs), opener=opener)


ACTIONS = """
const told = [], table = document.querySelector("table.matrix"), head = table.querySelectorAll("thead th");
const red = [...table.rows].flatMap(row => [...row.cells]).find(cell => /h(9|10|11)/.test(cell.className));
red.querySelector("a").click();
setTimeout(() => {
  const row = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  told.push(row.closest("details").open, row.innerText.includes("--runner ort:level=19 --case"));
  head[20].querySelector("button").click();
  const sorted = [...table.tBodies[0].rows].map(row => Number(row.cells[20].dataset.v));
  told.push(sorted.every((value, index) => index === 0 || sorted[index - 1] >= value));
  const form = document.querySelector("form.filter");
  form.elements.failing.checked = true;
  form.elements.words.value = "prefill";
  form.oninput();
  const shown = [...table.tBodies[0].rows].filter(row => !row.hidden);
  const asked = row => row.dataset.case.includes("prefill") && row.dataset.verdict !== "match";
  told.push(shown.length > 0, shown.every(asked));
  told.push([...document.querySelectorAll("button, a, input")].every(item => item.tabIndex >= 0));
  told.push(document.documentElement.scrollWidth <= innerWidth);
  document.title = "told " + JSON.stringify(told);
}, 200);
"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)")
@pytest.mark.parametrize("width", [1400, 480])
def test_twenty_engines_are_sorted_filtered_and_followed(tmp_path: Path, width: int) -> None:
    page = tmp_path / "report.html"
    html = html_report(many_engines(tmp_path))
    policy = re.search(r"script-src '([^']+)'", html)
    assert policy is not None
    html = html.replace(policy[1], "unsafe-inline").replace("</body>", f"<script>{ACTIONS}</script></body>")
    page.write_text(html, encoding="utf-8")
    flags = [flag for flag in FLAGS if "window-size" not in flag]
    command = [str(CHROMIUM), *flags, f"--window-size={width},1600", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--virtual-time-budget=3000", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    told = re.search(r"<title>told (.*?)</title>", done.stdout)
    assert told is not None, done.stderr[-2000:]
    assert json.loads(told[1]) == [True] * 7


def requested(log: Path) -> list[str]:
    """Every URL that the browser's network log mentions."""
    text = log.read_text(encoding="utf-8")
    events = json.loads(text if text.rstrip().endswith("}") else text.rstrip().rstrip(",") + "]}")["events"]
    urls = [event.get("params", {}).get("url", "") for event in events if isinstance(event.get("params"), dict)]
    return [url for url in urls if isinstance(url, str)]


def ours(url: str) -> bool:
    """Not one of the browser's own errands, which no flag turns off."""
    return not any(f"//{host}/" in url for host in ERRANDS)
