"""Our processes see their own environment's packages and nothing of ours but kvparity."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

import kvparity
from kvparity.runners.isolation.process import Launch, Process, info_of
from kvparity.start import command

PACKAGE = Path(kvparity.__file__).parent
WORKER = "kvparity.runners.isolation.worker"
ENGINE = '''"""Says which numpy it sees."""
import importlib.util, numpy
from kvparity.runners.base import RunnerInfo

def describe():
    beside = str(importlib.util.find_spec("only_ours") is not None)
    return RunnerInfo("which_numpy", numpy.__version__, {"numpy": numpy.__file__, "beside": beside})
'''


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site-packages folder with kvparity, as a plain install leaves it, beside a numpy that is not the engine's."""
    site = tmp_path_factory.mktemp("ours") / "site-packages"
    shutil.copytree(PACKAGE, site / "kvparity", ignore=shutil.ignore_patterns("__pycache__", "tinygemma4text3m"))
    (site / "kvparity" / "runners" / "engines" / "which_numpy.py").write_text(ENGINE)
    for name, text in (("numpy", "raise ImportError('the numpy of kvparity')"), ("only_ours", "")):
        (site / name).mkdir()
        (site / name / "__init__.py").write_text(text)
    return site


@pytest.fixture(scope="module")
def engine_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An environment of an engine's own, with a numpy."""
    folder = tmp_path_factory.mktemp("engine") / "env"
    venv.create(folder, with_pip=False)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "packages.pth").write_text(str(Path(np.__file__).parents[1]))
    return str(folder / "bin" / "python")


def test_an_engine_s_environment_gives_its_numpy_to_a_worker_from_a_plain_install(
    installed: Path, engine_python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(installed)
    monkeypatch.setenv("PYTHONPATH", str(installed))  # meant for this interpreter, not for the engine's
    words = [engine_python, str(installed / "kvparity" / "start.py"), WORKER, "which_numpy"]
    process = Process(Launch("which_numpy", words))
    try:
        info = info_of(process.call({"op": "describe"})[0])
    finally:
        process.stop()
    assert (info.version, info.settings) == (np.__version__, {"numpy": np.__file__, "beside": "False"})


def test_the_same_worker_started_as_a_module_sees_ours(installed: Path, engine_python: str) -> None:
    done = subprocess.run(
        [engine_python, "-m", WORKER, "which_numpy"], cwd=installed, capture_output=True, text=True, check=False
    )
    assert "the numpy of kvparity" in done.stderr


def test_nothing_of_a_clone_but_kvparity_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "show.py").write_text(
        "import importlib.util as u\n"
        "def main(): print([n for n in ('exporter', 'runners', 'tests', 'cli', 'api', 'options') if u.find_spec(n)])\n"
    )
    words = command("show")
    done = subprocess.run(words, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert words[0] == sys.executable
