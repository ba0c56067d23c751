"""Two processes that write one thing: whoever says 0 leaves it whole, no earlier one is lost, nothing lies about."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvparity.exporter.contract import files
from kvparity.exporter.contract.bundle import MANIFEST
from kvparity.exporter.contract.errors import BundleError
from kvparity.exporter.contract.files import bring_back, locked, new_folder, scratch_folder, swap, write_whole

ROOT = Path(__file__).resolve().parent.parent
_FOLDER = """
import sys, time
from pathlib import Path
from kvparity.exporter.contract.files import new_folder
target, word, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
with new_folder(target, "manifest.json") as folder:
    for index in range(8):
        (folder / f"part{index}").write_text(word)
        time.sleep(seconds / 8)
    (folder / "manifest.json").write_text(word)
"""
_SCRATCH = """
import sys, time
from kvparity.exporter.contract.files import scratch_folder
folder = scratch_folder(sys.argv[1])
print(folder.name, flush=True)
time.sleep(60)
"""


_COMPILED = """
import sys, time
from kvparity.runners.engines._cache import compiled

def make(made):
    print("made", flush=True)
    made.mkdir()
    time.sleep(0.3)
    (made / "x").write_text("whole")

print((compiled(["the same"], ".out", make) / "x").read_text(), flush=True)
"""


def start(script: str, *words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def whole(folder: Path) -> str:
    """The one word that every file of a folder holds."""
    assert sorted(path.name for path in folder.iterdir()) == [MANIFEST, *(f"part{index}" for index in range(8))]
    words = {path.read_text() for path in folder.iterdir()}
    assert len(words) == 1, words
    return words.pop()


@pytest.mark.parametrize("seed", range(6))
def test_writers_of_one_folder_take_turns_and_a_killed_one_costs_nothing(tmp_path: Path, seed: int) -> None:
    draw, target = random.Random(seed), tmp_path / "b"
    if seed % 2:
        with new_folder(target, MANIFEST) as folder:
            for name in (MANIFEST, *(f"part{index}" for index in range(8))):
                (folder / name).write_text("earlier")
    writers = [start(_FOLDER, target, word, 0.2) for word in ("one", "two", "three")]
    time.sleep(draw.uniform(0.1, 0.5))
    os.kill(writers[seed % 3].pid, signal.SIGKILL)
    ended = [process.communicate(timeout=60) and process.returncode for process in writers]
    assert [code for index, code in enumerate(ended) if index != seed % 3] == [0, 0]
    assert whole(target) in ("one", "two", "three")
    with new_folder(target, MANIFEST) as folder:  # the last one to end may have been the killed one
        (folder / MANIFEST).write_text("last")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_the_second_writer_says_that_it_waits(tmp_path: Path) -> None:
    with new_folder(tmp_path / "b", MANIFEST) as folder:
        (folder / MANIFEST).write_text("first")
        second = start(_FOLDER, tmp_path / "b", "second", 0)
        assert second.stderr is not None
        assert second.stderr.readline() == f"waiting for another process that is writing {tmp_path / 'b'}\n"
        assert second.poll() is None
    assert second.wait(timeout=60) == 0
    assert whole(tmp_path / "b") == "second"


def test_a_writer_leaves_the_leftovers_of_a_neighbour_of_a_longer_name(tmp_path: Path) -> None:
    with new_folder(tmp_path / "b.c", MANIFEST) as other:
        (other / MANIFEST).write_text("b.c")
        with new_folder(tmp_path / "b", MANIFEST) as folder:
            (folder / MANIFEST).write_text("b")
        assert other.is_dir()
    assert (tmp_path / "b.c" / MANIFEST).read_text() == "b.c"


def test_a_folder_is_replaced_where_names_cannot_be_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_exchange", lambda left, right: False)
    for word in ("first", "second"):
        with new_folder(tmp_path / "b", MANIFEST) as folder:
            (folder / MANIFEST).write_text(word)
    assert (tmp_path / "b" / MANIFEST).read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_replacement_that_was_killed_half_way_is_undone_by_readers_and_writers(tmp_path: Path) -> None:
    (tmp_path / ".b.old").mkdir()
    (tmp_path / ".b.old" / MANIFEST).write_text("earlier")
    bring_back(tmp_path / "b")
    assert (tmp_path / "b" / MANIFEST).read_text() == "earlier"
    (tmp_path / "b").rename(tmp_path / ".b.old")
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "b", MANIFEST):
        raise KeyboardInterrupt
    assert (tmp_path / "b" / MANIFEST).read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_link_to_a_folder_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "b").symlink_to("disk")
    with new_folder(tmp_path / "b", MANIFEST) as folder:
        (folder / MANIFEST).write_text("x")
    assert (tmp_path / "b").is_symlink()
    assert (tmp_path / "disk" / MANIFEST).read_text() == "x"


def test_a_target_that_cannot_be_replaced_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(new: Path, target: Path) -> None:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(files, "swap", busy)
    with pytest.raises(BundleError, match=r"cannot be replaced \(Device or resource busy\)"):
        with new_folder(tmp_path / "b", MANIFEST):
            pass


def test_files_are_exchanged_too(tmp_path: Path) -> None:
    (tmp_path / "new").write_text("new")
    (tmp_path / "target").write_text("old")
    swap(tmp_path / "new", tmp_path / "target")
    assert (tmp_path / "target").read_text() == "new"


def test_a_report_is_whole_and_a_device_is_written_to(tmp_path: Path) -> None:
    write_whole(tmp_path / "report.json", "{}")
    write_whole(Path("/dev/null"), "{}")
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_a_lock_leaves_nothing_and_is_held_by_one(tmp_path: Path) -> None:
    with locked(tmp_path / "x") as held:
        assert held
        assert [path.name for path in tmp_path.iterdir()] == [".x.lock"]
    assert not list(tmp_path.iterdir())


def test_a_graph_is_compiled_once_by_processes_that_need_it_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVPARITY_ENGINES", str(tmp_path))
    killed = start(_COMPILED)
    assert killed.stdout is not None
    assert killed.stdout.readline() == "made\n"
    killed.kill()
    killed.communicate()
    printed = [process.communicate(timeout=60)[0] for process in [start(_COMPILED), start(_COMPILED)]]
    assert sorted(printed) == ["made\nwhole\n", "whole\n"]
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_scratch_folders_of_killed_processes_go_and_those_of_living_ones_stay() -> None:
    prefix = f"kvparity-test-{os.getpid()}-"
    killed, living = start(_SCRATCH, prefix), start(_SCRATCH, prefix)
    try:
        folders = [Path(process.stdout.readline().strip()) for process in (killed, living) if process.stdout]
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        with scratch_folder(prefix) as mine:
            assert [folder.is_dir() for folder in (*folders, Path(mine))] == [False, True, True]
    finally:
        living.kill()
        living.wait()
        scratch_folder(prefix).cleanup()
