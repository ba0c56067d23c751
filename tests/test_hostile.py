"""Damaged and hostile packages through the whole command: exit 1 or 2 in one line, nothing read or written outside."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import cli
from kvparity.exporter.contract.bundle import Bundle
from tests.foreign import foreign_package
from tests.hostile import KINDS, hostile

SHORT = ["--limit", "16", "--case", "prefill-9", "--limit-seconds", "5", "--limit-mb", "4000"]
COUNT = 200
CHEAP = (1, 2, 7, 13, 17, 18, 19)  # refused before anything runs


@pytest.fixture(scope="module")
def right(subject: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return foreign_package(subject, tmp_path_factory.mktemp("hostile") / "right")


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "number", [pytest.param(n, marks=[] if n in CHEAP else [pytest.mark.slow]) for n in range(COUNT)]
)
def test_it_never_passes_and_never_crashes(
    right: Path,
    subject: Bundle,
    number: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KVPARITY_TRACEBACK", "1")  # what nobody foresaw fails the test
    package = Path(shutil.copytree(right, tmp_path / "package"))
    what = hostile(package, number)
    before = listing(tmp_path)
    words = ["judge", str(package), "--against", str(subject.root.parent / "hf"), *SHORT]
    code = cli.main(words)
    shown = "".join(capsys.readouterr())
    assert code in (1, 2), f"{what}: {code}\n{shown[-2000:]}"
    assert "Traceback" not in shown, what
    assert code == 1 or shown.strip().count("error: ") == 1, f"{what}: {shown[-2000:]}"
    assert listing(tmp_path) == before, what


def test_there_are_ten_of_each_kind() -> None:
    assert COUNT // len(KINDS) == 10
