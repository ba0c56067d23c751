"""Remembered hashes: never believed of a file that changed, never mixed between writers."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvparity.exporter.contract import hashes


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "LARGE", 10)


def aged(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the file have lain there for a while."""
    monkeypatch.setattr(time, "time_ns", lambda: path.stat().st_ctime_ns + 10_000_000_000)


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_hash_is_remembered_and_the_file_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"0" * 100)
    aged(path, monkeypatch)
    wanted = sha(path)
    assert hashes.digest(path) == wanted
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    assert hashes.digest(path) == wanted


@pytest.mark.parametrize("keep", [False, True])
def test_a_file_that_was_written_is_hashed_again_though_size_and_mtime_stay(
    keep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"0" * 100)
    status = path.stat()
    aged(path, monkeypatch)
    hashes.digest(path)
    if keep:  # in place: the inode stays
        with path.open("r+b") as stream:
            stream.write(b"1")
    else:
        path.unlink()
        path.write_bytes(b"1" + b"0" * 99)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert hashes.digest(path) == sha(path)


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"0" * 100)
    hashes.digest(path)
    assert not list((tmp_path / "cache").rglob("*"))


def test_a_damaged_entry_and_a_folder_that_cannot_be_written_are_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"0" * 100)
    aged(path, monkeypatch)
    hashes.digest(path)
    (entry,) = (tmp_path / "cache" / "kvparity" / "sha256").iterdir()
    entry.write_bytes(b"\xff\x00")
    assert hashes.digest(path) == sha(path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert hashes.digest(path) == sha(path)


def test_two_processes_that_hash_at_once_leave_one_whole_entry(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(1 << 20))
    os.utime(path, (1, 1))
    code = (
        "import sys, pathlib, time; from kvparity.exporter.contract import hashes; hashes.LARGE = 10; "
        "hashes._SETTLED = 0; p = pathlib.Path(sys.argv[1]); print({hashes.digest(p) for _ in range(200)})"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    said = {process.communicate()[0].strip() for process in processes}
    assert said == {str({sha(path)})}
    (entry,) = (tmp_path / "cache" / "kvparity" / "sha256").iterdir()
    assert entry.read_text().split("\n")[1] == sha(path)
