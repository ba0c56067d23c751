"""The pytest plugin: a test per case, the first divergence in the message, and no cost where nobody asks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kvparity.exporter.contract.bundle import Bundle
from tests.synthetic import make_bundle

ROOT = Path(__file__).resolve().parents[1]
MINE = """
from tests.synthetic import Decoder

class Right(Decoder):
    opened = 0
    def __init__(self, bundle):
        super().__init__()
        Right.opened += 1
        assert Right.opened == 1, "one session for all cases"

def wrong(bundle):
    return Decoder(window_shift=1)

def crashing(bundle):
    return Decoder(crash_on_call=1)
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("plugin") / "bundle")


def run_pytest(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """``pytest`` in a folder that is no project of ours."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "kvparity.pytest_plugin", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, *map(str, words)], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def test_every_case_is_a_test_and_a_right_engine_passes_them_all(bundle: Bundle, folder: Path) -> None:
    done = run_pytest(folder, "--kvparity", bundle.root, "--kvparity-runner", "mine:Right", "-v")
    assert done.returncode == 0, done.stdout
    assert f"{len(bundle.manifest.cases)} passed" in done.stdout
    assert all(f"{case.name} PASSED" in done.stdout for case in bundle.manifest.cases)


def test_a_wrong_engine_fails_with_the_first_divergence(bundle: Bundle, folder: Path) -> None:
    words = ("--kvparity", bundle.root, "--kvparity-runner", "mine:wrong", "-k", "prefill-7 or prefill-1")
    done = run_pytest(folder, *words)
    assert done.returncode == 1
    assert re.search(
        r"MISMATCH  wrong first differs from PyTorch in (float64 in )?case prefill-\d+, step 0", done.stdout
    )
    assert "Smallest passing" in done.stdout
    assert "Traceback" not in done.stdout


def test_a_crash_is_a_failure_with_its_message(bundle: Bundle, folder: Path) -> None:
    done = run_pytest(folder, "--kvparity", bundle.root, "--kvparity-runner", "mine:crashing", "-k", "prefill-1")
    assert done.returncode == 1
    assert "COULD NOT TELL" in done.stdout
    assert "RuntimeError: segmentation fault" in done.stdout


def test_cases_without_vectors_are_skipped(folder: Path) -> None:
    root = make_bundle(folder / "unrecorded", recorded=False).root
    done = run_pytest(folder, "--kvparity", root, "--kvparity-runner", "mine:Right", "-rs")
    assert "passed" not in done.stdout
    assert "was not recorded" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--kvparity", "nowhere"), "nowhere: no such folder"),
        (("--kvparity", "BUNDLE", "--kvparity-runner", "mine:Missing"), "has no attribute 'Missing'"),
        (("--kvparity", "BUNDLE", "--kvparity-runner", "nonesuch"), "runner 'nonesuch': unknown"),
    ],
)
def test_a_wrong_request_is_one_line(bundle: Bundle, folder: Path, words: tuple[str, ...], message: str) -> None:
    done = run_pytest(folder, *(bundle.root if word == "BUNDLE" else word for word in words))
    assert done.returncode == 4
    assert message in done.stderr


def test_without_the_option_nothing_is_imported(tmp_path: Path) -> None:
    (tmp_path / "test_nothing.py").write_text(
        "import sys\ndef test_it():\n    assert not {'numpy', 'pydantic', 'torch', 'onnxruntime'} & set(sys.modules)\n"
    )
    done = run_pytest(tmp_path)
    assert done.returncode == 0, done.stdout


def test_the_example_is_judged(tiny_bundle: Bundle) -> None:
    words = ("--kvparity", tiny_bundle.root, "--kvparity-runner", "mine:Session", "-k", "handoff-128 or batch-ragged")
    done = run_pytest(ROOT / "examples" / "pytest-plugin", *words)
    assert "2 passed" in done.stdout, done.stdout + done.stderr
