"""Bad input: one clear line, exit code 2, nothing half-written, nothing lost."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import cli
from kvparity.exporter.checkpoint.source import resolve
from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.errors import ExportError, TraceError
from tests.conftest import ROOT, TINY
from tests.refusals import is_listed

pytest.importorskip("torch", reason="the exporter's extra is not installed")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that a test may damage."""
    return Path(shutil.copytree(TINY, tmp_path / "checkpoint"))


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run the command line, insist on exit 2 and one line on stderr, return that line."""
    assert cli.main(list(words)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, captured.err
    assert "Traceback" not in captured.err
    assert is_listed(lines[0]) or "needs " in lines[0], f"not in docs/refusals.md: {lines[0]}"
    return lines[0]


def edit_config(checkpoint: Path, **changes: object) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_no_such_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = fails(capsys, "export", str(tmp_path / "absent"), "-o", str(tmp_path / "b"))
    assert "no such folder or GGUF file" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "install"),
    [("torch.nn", "pip install 'kvparity[export]'"), ("matplotlib", "pip install 'kvparity[report]'"), ("xyz", "xyz")],
)
def test_a_package_that_is_missing_is_named_with_the_extra_that_brings_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str, install: str
) -> None:
    def absent(*_: object, **__: object) -> None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr("kvparity.exporter.checkpoint.source.resolve", absent)
    line = fails(capsys, "export", "-o", str(tmp_path / "b"))
    assert f"needs {module.partition('.')[0]}" in line
    assert line.endswith(install)


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_not_the_shipped_checkpoint(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    assert "the name of the model is empty" in fails(capsys, "export", name, "-o", str(tmp_path / "b"))


def test_a_folder_that_is_no_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    assert "config.json is missing" in fails(capsys, "export", str(tmp_path / "x"), "-o", str(tmp_path / "b"))


def test_an_unknown_architecture(capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path) -> None:
    edit_config(checkpoint, model_type="warp_drive")
    line = fails(capsys, "export", str(checkpoint), "-o", str(tmp_path / "b"))
    assert "stage read" in line
    assert "warp_drive" in line
    assert not (tmp_path / "b").exists()


def test_a_config_that_is_no_json(capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "config.json").write_text("{")
    assert "config cannot be read" in fails(capsys, "export", str(checkpoint), "-o", str(tmp_path / "b"))


@pytest.mark.parametrize("keep", [4, 1000, 5_000_000])
def test_truncated_weights(capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path, keep: int) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    line = fails(capsys, "export", str(checkpoint), "-o", str(tmp_path / "b"))
    assert "model.safetensors: truncated" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


@pytest.mark.parametrize(
    "header",
    ["[]", "{", '{"a": 1}', '{"a": {}}', "[" * 5000]
    + [
        f'{{"a": {{"dtype": "F32", "shape": [1], "data_offsets": {place}}}, {rest}}}'
        for place, rest in [
            ("[4, 0]", '"__metadata__": {}'),
            ("[-4, 0]", '"__metadata__": {}'),
            ("[0, 8]", '"__metadata__": {}'),
            ("[0, 4]", '"b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'),  # two in one place
        ]
    ],
)
def test_weights_whose_header_is_damaged(checkpoint: Path, header: str) -> None:
    data = len(header).to_bytes(8, "little") + header.encode() + bytes(4)
    (checkpoint / "model.safetensors").write_bytes(data)
    with pytest.raises(ExportError, match=r"^model.safetensors: truncated, damaged or no safetensors file \(") as found:
        resolve(str(checkpoint)).stored()
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("weight_map", ["", "[]", "{}", '{"a": 1}', '{"a": null}', '{"a": ""}', "3"])
def test_an_index_that_is_none(checkpoint: Path, weight_map: str) -> None:
    (checkpoint / "model.safetensors").unlink()
    index = checkpoint / "model.safetensors.index.json"
    for text in (weight_map, f'{{"weight_map": {weight_map}}}', f'{{"metadata": {{}}, "weight_map": {weight_map}}}'):
        index.write_text(text)
        with pytest.raises(ExportError, match="not an index of weights, no weight_map from tensors to files"):
            resolve(str(checkpoint)).stored()


def test_a_link_to_weights_that_are_not_there(checkpoint: Path) -> None:
    """As a download into a hub's cache leaves it when it is cut off."""
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "model.safetensors").symlink_to("../../blobs/abc")
    with pytest.raises(ExportError, match=r"a link to ../../blobs/abc, which is not there; fetch the checkpoint again"):
        resolve(str(checkpoint)).stored()


def test_a_tokenizer_of_more_tokens_than_the_model_knows(tiny_bundle: Bundle) -> None:
    from kvparity.runners.decode.generate import generate_tokens
    from kvparity.runners.decode.sampling import Sampling

    prompt, none = np.array([1, 5000]), cast(Any, None)
    with pytest.raises(TraceError, match="the prompt has token 5000, and the model knows 1024"):
        next(generate_tokens(tiny_bundle, none, prompt, 3, Sampling()))


def test_absent_weights(capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    assert "no model.safetensors" in fails(capsys, "export", str(checkpoint), "-o", str(tmp_path / "b"))


def test_weights_of_another_shape(capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path) -> None:
    edit_config(checkpoint, vocab_size=1000)
    line = fails(capsys, "export", str(checkpoint), "-o", str(tmp_path / "b"))
    assert "(1024, 160), the config asks (1000, 160)" in line


def test_an_output_folder_that_holds_something_else(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    line = fails(capsys, "export", str(TINY), "-o", str(tmp_path / "mine"))
    assert "exists and is not a bundle" in line
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def old_bundle(folder: Path) -> dict[str, bytes]:
    """Something that counts as an earlier bundle, and its bytes."""
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    (folder / "decode.onnx").write_bytes(b"old")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def export_process(target: Path, limit: int | None = None) -> subprocess.Popen[str]:
    def before() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, str(ROOT / "cli.py"), "export", str(TINY), "-o", str(target), "--vectors", "none"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=before)


def test_a_full_disk_names_the_stage_and_keeps_the_earlier_bundle(tmp_path: Path) -> None:
    before = old_bundle(tmp_path / "b")
    process = export_process(tmp_path / "b", limit=1_000_000)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    last = errors.strip().splitlines()[-1]
    assert last.startswith("error: stage weights:")
    assert {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_kill_during_export_keeps_the_earlier_bundle(tmp_path: Path) -> None:
    before = old_bundle(tmp_path / "b")
    process = export_process(tmp_path / "b")
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob(".b.*.tmp/model.safetensors")):  # graphs are being traced
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()} == before


def test_an_edited_graph_is_refused(capsys: pytest.CaptureFixture[str], tiny_copy: Path) -> None:
    graph = tiny_copy / "decode.onnx"
    graph.write_bytes(graph.read_bytes() + b"\0")
    assert "decode.onnx was modified" in fails(capsys, "compare", str(tiny_copy))


def test_missing_weights_are_named(capsys: pytest.CaptureFixture[str], tiny_copy: Path) -> None:
    (tiny_copy / "model.safetensors").unlink()
    for command in ("compare", "run", "inspect"):
        assert "model.safetensors is missing" in fails(capsys, command, str(tiny_copy))


def test_a_broken_graph_is_no_pass_even_when_modified_files_are_allowed(
    capsys: pytest.CaptureFixture[str], tiny_copy: Path
) -> None:
    (tiny_copy / "prefill.onnx").write_bytes(b"not a graph")
    assert cli.main(["compare", str(tiny_copy), "--allow-modified", "-c", "prefill-2"]) == 2


def test_an_empty_case_selection(capsys: pytest.CaptureFixture[str], tiny_bundle: object) -> None:
    root = str(tiny_bundle.root)  # type: ignore[attr-defined]
    assert "no-such-case" in fails(capsys, "compare", root, "--case", "no-such-case")


def test_an_unknown_runner_and_an_unknown_setting(capsys: pytest.CaptureFixture[str], tiny_bundle: object) -> None:
    root = str(tiny_bundle.root)  # type: ignore[attr-defined]
    assert "runner 'warp': unknown" in fails(capsys, "compare", root, "-r", "warp")
    assert "warp" in fails(capsys, "run", root, "-r", "ort:warp=9")


@pytest.mark.parametrize(
    "words", [["export", "--layout", "spiral"], ["compare"], ["frobnicate"], ["run", "x", "-n", "0"]]
)
def test_wrong_usage_is_exit_2(words: list[str]) -> None:
    assert cli.main(words) == 2
