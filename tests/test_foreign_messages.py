"""Files and settings that a consumer gets wrong: one line in our words, exit code 2, no other library's advice."""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cli
from kvparity.exporter.contract.bundle import Bundle
from tests.refusals import is_listed

CASE = "prefill-2"
_FOREIGN = ("allow_pickle", "Traceback", "KVPARITY_TRACEBACK", "hard link", "pydantic", "zlib", "Errno", "Error:")


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """The one line of a command that could not tell."""
    capsys.readouterr()
    code = cli.main(list(map(str, words)))
    said = capsys.readouterr()
    lines = [line for line in (said.out + said.err).splitlines() if line.startswith(("error: ", "COULD NOT TELL  "))]
    assert code == 2, said
    assert len(lines) == 1, said
    assert not [word for word in _FOREIGN if word in said.out + said.err], said
    assert is_listed(lines[0]), f"not in docs/refusals.md: {lines[0]}"
    return lines[0]


@pytest.fixture
def linked(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of the tiny bundle of hard links; :func:`put` gives a file of its own."""
    return Path(shutil.copytree(tiny_bundle.root, tmp_path / "bundle", copy_function=os.link))


def put(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def zipped(name: str, data: bytes, *, flag: int = 0, method: int = 0) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, data)
    raw = bytearray(stream.getvalue())
    central = raw.find(b"PK\x01\x02")
    raw[6] |= flag
    raw[central + 8] |= flag
    raw[8], raw[central + 10] = method or raw[8], method or raw[central + 10]
    return bytes(raw)


KEY = f"{CASE}/step_0/logits"
TRACES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a readable .npz trace"),
    "a pickle": (b"\x80\x04]\x94K\x01a.", "it holds Python objects, which are never read"),
    "the beginning of a .npy": (b"\x93NUMPY", "not a readable .npz trace"),
    "a .npy": (npz(x=np.zeros(2))[40:], "not a readable .npz trace"),
    "objects": (npz(**{KEY: np.array([1, None], object)}), "it holds Python objects, which are never read"),
    "an engine that is an object": (
        npz(engine=np.array([None], object), **{KEY: np.zeros(2)}),
        "it holds Python objects",
    ),
    "a member that is no array": (zipped(f"{KEY}.npy", b"hello"), "is no array"),
    "an encrypted member": (zipped(f"{KEY}.npy", b"hello", flag=1), "is encrypted"),
    "an unknown compression": (zipped(f"{KEY}.npy", b"hello", method=99), "is unreadable"),
    "foreign keys": (npz(weights=np.zeros(2)), "is not of the form <case>/step_<i>/<output>"),
    "a step beyond the case": (npz(**{KEY.replace("_0", "_" + "9" * 20): np.zeros(2)}), "which has 1 calls"),
}


@pytest.mark.parametrize("name", TRACES)
def test_a_trace_that_cannot_be_read(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    data, words = TRACES[name]
    put(tmp_path / "t.npz", data)
    asked = ("compare", tiny_bundle.root, "--trace", tmp_path / "t.npz", "-c", CASE)
    assert words in refused(capsys, *asked)


@pytest.mark.parametrize(
    ("name", "words"), [("absent.npz", "not a readable .npz trace ("), (".", "holds no .npy file, and no trace.json")]
)
def test_a_trace_that_is_no_file(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, words: str
) -> None:
    line = refused(capsys, "compare", tiny_bundle.root, "--trace", tmp_path / name, "-c", CASE)
    assert words in line


def _nested(data: dict[str, Any]) -> bytes:
    return b"[" * 100_000


MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], bytes | None], str]] = {
    "empty": (lambda data: b"", "not readable JSON"),
    "not UTF-8": (lambda data: b"\xff\xfe", "not readable JSON"),
    "a list": (lambda data: b"[]", "schema_version None"),
    "nested without end": (_nested, "not readable JSON"),
    "no model": (lambda data: data.update(model=None), "manifest.json: model: "),
    "a path outside": (lambda data: data["weights"][0].update(path="/etc/passwd"), "leaves the bundle folder"),
    "a path that is a folder": (lambda data: data["weights"][0].update(path="cases"), "cases is missing"),
    "an unknown layout": (lambda data: data["options"].update(layout="x"), "options.layout"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_that_is_none(linked: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    edit, words = MANIFESTS[name]
    data = json.loads((linked / "manifest.json").read_text())
    changed = edit(data)
    put(linked / "manifest.json", json.dumps(data).encode() if changed is None else changed)
    for command in ("compare", "run", "inspect"):
        assert words in refused(capsys, command, linked, "--allow-modified")


@pytest.mark.parametrize(
    ("data", "words"), [(b"", "holds no graph"), (b"\x0a\xffnot a graph", "is no ONNX graph")], ids=["empty", "junk"]
)
def test_a_graph_that_is_none(linked: Path, capsys: pytest.CaptureFixture[str], data: bytes, words: str) -> None:
    for kind in ("prefill", "decode"):
        put(linked / f"{kind}.onnx", data)
    for asked in (
        ("compare", linked, "-c", CASE, "-r", "onnx_reference"),
        ("inspect", linked),
        ("probes", linked, "-c", CASE),
        ("package", linked, "--to", "transformersjs", "-o", linked.parent / "js"),
    ):
        assert words in refused(capsys, *asked, "--allow-modified")
    assert "cannot load" in refused(capsys, "compare", linked, "-c", CASE, "--allow-modified")


def test_weights_that_end_early(linked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = linked / "model.safetensors"
    put(weights, weights.read_bytes()[:5000])
    for asked in (("probes", linked, "-c", CASE), ("compare", linked, "-c", CASE, "-r", "onnx_reference")):
        assert "model.safetensors is shorter than" in refused(capsys, *asked, "--allow-modified")
    assert "ort cannot load" in refused(capsys, "run", linked, "--allow-modified")


@pytest.mark.parametrize(
    ("runner", "words"),
    [
        ("ort:threads=x", "threads 'x' is not a number"),
        ("ort:threads=-1", "threads '-1' is not a number"),
        ("ort:level=", "level '' is unknown; known are all"),
        ("ort:level=all,level=basic", "setting 'level' is given twice"),
        ("ort:provider=zz", "provider 'zz' is not in this build"),
        ("ort:=1", "setting '' is unknown here"),
        ("ort:threads", "setting 'threads' has no value"),
        ("nobody", "runner 'nobody': unknown"),
        ("trace_file", "needs one: --trace FILE"),
        ("ort:python=/nonexistent", "nonexistent cannot be started (No such file or directory)"),
        ("ort:env=../../x", "environment '../../x' does not exist"),
        ("ort:limit=x", "limit 'x' is not a number of seconds"),
    ],
)
def test_a_runner_s_settings(tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str], runner: str, words: str) -> None:
    assert words in refused(capsys, "compare", tiny_bundle.root, "-c", CASE, "-r", runner)


@pytest.mark.parametrize("option", ["--json", "--junit", "--markdown", "--model-explorer", "--html", "--save-trace"])
def test_a_report_that_cannot_be_written(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    asked = ("compare", tiny_bundle.root, "-c", CASE, option)
    assert "cannot be written (No such file" in refused(capsys, *asked, tmp_path / "no" / "report.json")
    line = refused(capsys, *asked, tmp_path)
    assert "Is a directory" in line or "is a folder" in line


@pytest.mark.parametrize("file", ["tokenizer.json", "generation_config.json"])
def test_files_of_the_model_that_are_damaged(linked: Path, capsys: pytest.CaptureFixture[str], file: str) -> None:
    put(linked / file, b"[1")
    for asked in (("run", linked), ("package", linked, "--to", "transformersjs", "-o", linked.parent / "js")):
        line = refused(capsys, *asked, "--allow-modified")
        assert f"{linked / file}: not a " in line
