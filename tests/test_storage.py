"""Bundles as they lie about: links into a hub's cache, hard links, weights on another disk, parts left out."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import cli
from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.errors import BundleError
from kvparity.exporter.contract.graph_file import external_tensors, load_graph_file, load_whole_graph
from tests.test_golden import verify


def hub_cache(bundle: Path, work: Path) -> Path:
    """Every file a relative link into ``blobs``, as the hub's client stores a snapshot."""
    snapshot, blobs = work / "models--me--tiny" / "snapshots" / "abc", work / "models--me--tiny" / "blobs"
    blobs.mkdir(parents=True)
    for path in filter(Path.is_file, bundle.rglob("*")):
        blob, link = blobs / hashlib.sha256(path.read_bytes()).hexdigest(), snapshot / path.relative_to(bundle)
        shutil.copyfile(path, blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def hard_links(bundle: Path, work: Path) -> Path:
    copy = shutil.copytree(bundle, work / "copy")
    return Path(shutil.copytree(copy, work / "links", copy_function=os.link))


def weights_elsewhere(bundle: Path, work: Path) -> Path:
    copy = Path(shutil.copytree(bundle, work / "ünï cödé 模型"))
    (copy / "model.safetensors").rename(work / "another disk")
    (copy / "model.safetensors").symlink_to(work / "another disk")
    return copy


STORED = pytest.mark.parametrize("stored", [hub_cache, hard_links, weights_elsewhere])
Stored = Callable[[Path, Path], Path]


@STORED
def test_every_command_takes_the_folder(
    tiny_bundle: Bundle, tmp_path: Path, stored: Stored, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, work = stored(tiny_bundle.root, tmp_path / "stored"), tmp_path / "work"
    work.mkdir()
    before = sorted(tmp_path.rglob("*"))
    words = ["--case", "prefill-2"]
    assert cli.main(["compare", str(folder), *words, "--exact", "-r", "ort", "-r", "onnx_reference"]) == 0
    assert cli.main(["compare", str(folder), *words, "--live", "--tol", "0", "--locate"]) == 1
    assert "Located" in capsys.readouterr().out
    assert cli.main(["probes", str(folder), *words, "-o", str(work / "golden.npz")]) == 0
    assert cli.main(["compare", str(folder), *words, "--model-explorer", str(work / "errors.json")]) == 0
    assert cli.main(["run", str(folder), "-n", "2"]) == 0
    assert cli.main(["inspect", str(folder)]) == 0
    assert cli.main(["package", str(folder), "--to", "transformersjs", "-o", str(work / "js")]) == 0
    assert not any(path.is_symlink() for path in (work / "js").rglob("*"))
    assert verify(folder, "prefill-2").returncode == 0
    assert sorted(path for path in tmp_path.rglob("*") if work not in (path, *path.parents)) == [
        path for path in before if path != work
    ]


@pytest.mark.parametrize("name", [".", "cases/..", "./"])
def test_the_folder_that_one_is_in(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tiny_bundle.root)
    assert cli.main(["inspect", name]) == 0
    monkeypatch.chdir("/")
    assert cli.main(["inspect", name.replace("cases/", "")]) == 2


def test_the_same_verdict_in_a_folder_that_nobody_may_write(tiny_copy: Path) -> None:
    folders = [tiny_copy, tiny_copy / "cases"]
    for folder in folders:
        folder.chmod(0o555)
    try:
        assert cli.main(["compare", str(tiny_copy), "--case", "prefill-2"]) == 0
    finally:
        for folder in folders:
            folder.chmod(0o755)


@STORED
def test_weights_are_read_through_links(tiny_bundle: Bundle, tmp_path: Path, stored: Stored) -> None:
    folder = stored(tiny_bundle.root, tmp_path)
    there, here = (load_graph_file(root / "decode.onnx") for root in (folder, tiny_bundle.root))
    for (value, tensor), (_, own) in zip(external_tensors(there), external_tensors(here), strict=True):
        assert tensor.location == "model.safetensors"
        assert np.array_equal(value.const_value.numpy(), own.numpy())
    whole, own_whole = (load_whole_graph(root / "decode.onnx") for root in (folder, tiny_bundle.root))
    assert whole.SerializeToString() == own_whole.SerializeToString()
    assert not any(tensor.external_data for tensor in whole.graph.initializer)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd"])
def test_a_graph_that_names_a_file_outside_is_refused(tiny_copy: Path, location: str) -> None:
    import onnx

    (tiny_copy.parent / "secret").write_bytes(bytes(1 << 24))
    model = onnx.load(tiny_copy / "decode.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    (tiny_copy / "decode.onnx").write_bytes(model.SerializeToString())
    for load in (load_graph_file, load_whole_graph):
        with pytest.raises(BundleError, match="leaves the bundle folder"):
            load(tiny_copy / "decode.onnx")
    words = ["compare", str(tiny_copy), "--allow-modified", "-c", "decode-1", "--exact"]
    assert cli.main([*words, "-r", "ort", "-r", "onnx_reference"]) == 2


def test_a_file_that_is_no_graph_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "decode.onnx").write_bytes(b"\x0a\xff not a graph")
    for load in (load_graph_file, load_whole_graph):
        with pytest.raises(BundleError, match="is no ONNX graph"):
            load(tmp_path / "decode.onnx")
        with pytest.raises(BundleError, match="cannot be read"):
            load(tmp_path / "absent.onnx")


def test_missing_vectors_are_named_and_the_rest_is_judged_on_request(
    tiny_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (tiny_copy / "cases").glob("*.npz"):
        if path.name not in ("prefill-1.npz", "prefill-2.npz"):
            path.unlink()
    assert cli.main(["run", str(tiny_copy), "-n", "2"]) == 0
    assert cli.main(["inspect", str(tiny_copy)]) == 0
    assert cli.main(["compare", str(tiny_copy), "--case", "prefill-*2"]) == 0
    capsys.readouterr()
    assert cli.main(["compare", str(tiny_copy)]) == 2
    assert "are missing; restore the files, or pass --allow-modified" in capsys.readouterr().err
    assert cli.main(["compare", str(tiny_copy), "--allow-modified"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  ort: 2 of 35 cases, " in lines[0]
    assert any(line.startswith("Not judged, because their files are missing: prefill-") for line in lines)
    assert cli.main(["compare", str(tiny_copy), "--allow-modified", "--case", "decode-*"]) == 2
    assert "(--no-hash replays the others)" in verify(tiny_copy).stderr
    replayed = verify(tiny_copy, "--no-hash")
    assert (replayed.returncode, replayed.stdout.splitlines()[-1][:22]) == (0, "2 cases (33 not there)")
