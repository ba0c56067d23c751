"""Weights pass through memory in blocks: a tensor of 512 MB must not make a process 512 MB larger."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

CONVERT = """
import sys, tracemalloc
from pathlib import Path
import ml_dtypes, numpy
from kvparity.exporter.checkpoint.source import StoredTensor
from kvparity.exporter.checkpoint.weights import _reader, write_safetensors
source, target = map(Path, sys.argv[1:])
shape = (1 << 17, 1 << 10)
read = _reader(StoredTensor(source, 0, 4 << 27, "float32", shape))
whole = (lambda: iter([numpy.concatenate(list(read()))])) if "{whole}" else read
tracemalloc.start()  # numpy reports its arrays to it; the peak of a process would begin with its parent's
write_safetensors(target, {{"big": (shape, whole)}}, {{"big": "bfloat16"}})
print(tracemalloc.get_traced_memory()[1] / 2**20)
"""


def _grown(tmp_path: Path, whole: str) -> float:
    """MB that a process holds at most while it converts 512 MB of float32."""
    source = tmp_path / "source"
    with source.open("wb") as stream:
        stream.truncate(4 << 27)  # a hole: no disk is used
    command = [sys.executable, "-c", CONVERT.format(whole=whole), str(source), str(tmp_path / "target")]
    done = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    assert (tmp_path / "target").stat().st_size > 2 << 27
    (tmp_path / "target").unlink()
    return float(done.stdout)


def test_converting_a_large_tensor_takes_little_memory(tmp_path: Path) -> None:
    assert _grown(tmp_path, "") < 160


def test_holding_it_whole_would_be_noticed(tmp_path: Path) -> None:
    assert _grown(tmp_path, "x") > 400
