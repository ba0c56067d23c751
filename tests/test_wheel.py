"""What pip installs: one top-level name, with everything that runs from it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.folder_tree import ROOT, tracked

BUILD = "import sys; from setuptools import build_meta as build; print(getattr(build, sys.argv[1])(sys.argv[2]))"


def build(kind: str, source: Path, target: Path) -> Path:
    """An archive, built without an environment of its own."""
    target.mkdir(exist_ok=True)
    words = [sys.executable, "-c", BUILD, f"build_{kind}", str(target)]
    done = subprocess.run(words, cwd=source, capture_output=True, text=True, check=True)
    return target / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Wheel and source archive of a copy of the tracked files."""
    pytest.importorskip("setuptools")
    source = tmp_path_factory.mktemp("source") / "kvparity"
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name, follow_symlinks=False)
    for link in ("exporter", "runners", "tinygemma4text3m"):
        if not (source / "kvparity" / link).is_symlink():
            (source / "kvparity" / link).symlink_to(os.readlink(ROOT / "kvparity" / link))
    target = tmp_path_factory.mktemp("dist")
    return build("wheel", source, target), build("sdist", source, target)


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_has_one_top_level_name_and_all_that_runs_from_it(archives: tuple[Path, Path]) -> None:
    found = names(archives[0])
    assert {name.split("/")[0] for name in found} - {"kvparity-0.1.0.dist-info"} == {"kvparity"}
    halves = {f"kvparity/{name}" for name in tracked() if name.startswith(("exporter/", "runners/"))}
    assert sorted(halves - found) == []
    needed = ("cli.py", "start.py", "exporter/golden/verify.py", "runners/engines/_js/node.mjs")
    shipped = ("config.json", "model.safetensors", "tokenizer.json")
    for name in (*needed, *(f"tinygemma4text3m/hf/{file}" for file in shipped)):
        assert f"kvparity/{name}" in found, name


def test_a_wheel_built_from_the_source_archive_holds_the_same(archives: tuple[Path, Path], tmp_path: Path) -> None:
    with tarfile.open(archives[1]) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    wheel = build("wheel", source, tmp_path / "again")
    assert names(wheel) == names(archives[0])


def test_an_installed_command_runs_and_finds_the_shipped_checkpoint(
    archives: tuple[Path, Path], tmp_path: Path
) -> None:
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    site = next((tmp_path / "env").glob("lib/python*/site-packages"))
    with zipfile.ZipFile(archives[0]) as archive:
        archive.extractall(site)
    (site / "others.pth").write_text(str(Path(np.__file__).parents[1]))  # the libraries, from this environment
    code = (
        "import sys, kvparity.cli, kvparity.api as api; assert kvparity.__file__.startswith(sys.prefix); "
        "assert (api.SHIPPED / 'hf' / 'config.json').is_file(); "
        "from kvparity.exporter.checkpoint.source import resolve; "
        "source = resolve(str(api.SHIPPED / 'hf')).source; "
        "print(api._default_output(source, kvparity.ExportOptions(profile='ort'))); "
        "kvparity.cli.main(['list', 'families']); "
        "sys.exit(kvparity.cli.main(['list', 'packages']))"
    )
    done = subprocess.run([python, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "artifacts/tinygemma4text3m-ort"
    assert "gemma3 " in done.stdout
    assert "genai" in done.stdout
