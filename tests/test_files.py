"""Copies of files: blocks cloned where the disk can, else bytes copied; never a link, nothing left of a failure."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path

import pytest

from kvparity.exporter.contract.files import copy_file


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A file as a hub's cache has it: a symbolic link to a blob."""
    (tmp_path / "blob").write_bytes(b"weights" * 999)
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blob")
    return tmp_path / "model.safetensors"


def test_a_copy_of_a_link_is_a_file_of_its_own(linked: Path, tmp_path: Path) -> None:
    copy_file(linked, tmp_path / "copy")
    assert not (tmp_path / "copy").is_symlink()
    assert (tmp_path / "copy").stat().st_nlink == 1
    assert (tmp_path / "copy").read_bytes() == linked.read_bytes()


def test_blocks_are_cloned_where_the_disk_can(linked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(fcntl, "ioctl", lambda target, request, source: asked.append(request))
    monkeypatch.setattr(shutil, "copyfile", lambda *_: pytest.fail("copied"))
    copy_file(linked, tmp_path / "copy")
    assert asked == [0x40049409]  # FICLONE of linux/fs.h


def test_bytes_are_copied_where_it_cannot(linked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "ioctl", refuses)
    copy_file(linked, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == linked.read_bytes()


def test_nothing_is_left_of_a_copy_that_failed(linked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    monkeypatch.setattr(fcntl, "ioctl", lambda *_: full(linked, tmp_path / "copy"))
    with pytest.raises(OSError, match="No space left"):
        copy_file(linked, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
