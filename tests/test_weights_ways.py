"""Weights copied, cloned or referenced: the bundle is right, and what a way cannot do is refused with its reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.errors import BundleError, ExportError
from kvparity.exporter.contract.spec import ExportOptions
from kvparity.runners.base import RunnerSpec
from kvparity.runners.compare.judge import JudgeOptions, judge
from tests.families import FAMILIES, make_config, save_checkpoint

pytest.importorskip("torch", reason="the exporter's extra is not installed")
REFERENCE = ExportOptions(weights="reference")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A Gemma 3 of a few thousand parameters."""
    family = next(family for family in FAMILIES if family.name == "gemma3")
    return Path(save_checkpoint(make_config(family), tmp_path / "hf"))


def export_to(checkpoint: Path, target: Path, options: ExportOptions) -> Bundle:
    from kvparity.exporter.checkpoint.source import resolve
    from kvparity.exporter.export import export
    from kvparity.runners.reference.record import record_cases

    return export(resolve(str(checkpoint)), target, options, record=record_cases, limit=24, in_process=True)


def verdict(bundle: Bundle) -> str:
    return judge(bundle, JudgeOptions((RunnerSpec("ort"),), ("decode-far", "prefill-*"), tol="auto")).verdict


def test_a_bundle_beside_the_weights_matches_and_leaves_the_checkpoint_as_it_was(checkpoint: Path) -> None:
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    export_to(checkpoint, checkpoint, REFERENCE)
    assert {name: (checkpoint / name).read_bytes() for name in before} == before
    assert not (checkpoint / ".kvparity.old").exists()
    bundle = Bundle.open(checkpoint)
    assert verdict(bundle) == "match"
    weights = checkpoint / bundle.manifest.weights[0].path
    data = bytearray(weights.read_bytes())
    data[-64:] = bytes(64)
    weights.write_bytes(data)
    with pytest.raises(BundleError, match="was modified"):
        Bundle.open(checkpoint)
    assert verdict(Bundle.open(checkpoint, allow_modified=True)) == "mismatch"


def test_a_failed_export_beside_the_weights_brings_the_earlier_bundle_back(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_to(checkpoint, checkpoint, REFERENCE)
    before = {path: path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()}

    def fails(*_: object) -> None:
        raise ExportError("no")

    monkeypatch.setattr("kvparity.exporter.export.check_graph", fails)
    with pytest.raises(ExportError, match="stage check: no"):
        export_to(checkpoint, checkpoint, replace(REFERENCE, logits="last"))
    assert {path: path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()} == before
    assert Bundle.open(checkpoint).options.logits == "all"


def test_references_never_leave_the_folder(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="leave -o out"):
        export_to(checkpoint, tmp_path / "elsewhere", REFERENCE)
    weights = checkpoint / "model.safetensors"
    weights.rename(tmp_path / "blob")
    weights.symlink_to(tmp_path / "blob")
    with pytest.raises(ExportError, match="is a link"):
        export_to(checkpoint, checkpoint, REFERENCE)
    weights.unlink()
    weights.hardlink_to(tmp_path / "blob")
    with pytest.raises(ExportError, match="is a link"):
        export_to(checkpoint, checkpoint, REFERENCE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blob", "hf"]


@pytest.mark.parametrize("way", ["link", "reference"])
def test_weights_that_must_be_converted_are_neither_linked_nor_referenced(
    checkpoint: Path, tmp_path: Path, way: str
) -> None:
    target = checkpoint if way == "reference" else tmp_path / "bundle"
    options = replace(REFERENCE, weights=way, dtype="float16")
    with pytest.raises(ExportError, match="float16 and the checkpoint has float32; use --weights copy"):
        export_to(checkpoint, target, options)
    assert not (target / "manifest.json").exists()


def test_files_that_are_no_bundle_are_not_overwritten(checkpoint: Path) -> None:
    (checkpoint / "decode.onnx").write_bytes(b"mine")
    with pytest.raises(ExportError, match=r"has decode\.onnx and no manifest\.json"):
        export_to(checkpoint, checkpoint, REFERENCE)
    assert (checkpoint / "decode.onnx").read_bytes() == b"mine"


def test_a_disk_that_cannot_clone_files_is_told_and_nothing_is_left(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuses(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "ioctl", refuses)
    with pytest.raises(ExportError, match=r"cannot clone model\.safetensors \(Operation not supported\), and hard"):
        export_to(checkpoint, tmp_path / "bundle", ExportOptions(weights="link"))
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
