"""A bundle is whole or absent, unchanged or refused, and never reaches outside its folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kvparity.exporter.contract.bundle import MANIFEST, Bundle, FileEntry, inside, write_manifest
from kvparity.exporter.contract.errors import BundleError
from kvparity.exporter.contract.files import new_folder


def test_a_folder_appears_only_when_the_block_ends_well(tmp_path: Path) -> None:
    target = tmp_path / "b"
    with new_folder(target, MANIFEST) as folder:
        (folder / "manifest.json").write_text("{}")
        assert not target.exists()
    assert (target / "manifest.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_an_error_leaves_the_previous_bundle_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "b"
    target.mkdir()
    (target / "manifest.json").write_text("old")

    def half_way() -> None:
        with new_folder(target, MANIFEST) as folder:
            (folder / "manifest.json").write_text("new")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        half_way()
    assert (target / "manifest.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / ".b.0123abcd.tmp").mkdir()
    (tmp_path / ".b.0123abcd.tmp" / "half").write_text("x")
    with new_folder(tmp_path / "b", MANIFEST) as folder:
        (folder / "manifest.json").write_text("{}")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["b", "manifest.json"]


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match="not a bundle"), new_folder(tmp_path, MANIFEST):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "..\\x", "C:\\x", ""])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match="leaves the bundle folder"):
        inside(tmp_path, name)


def test_an_untouched_bundle_opens(tiny_copy: Path) -> None:
    assert Bundle.open(tiny_copy).model.pattern == "ssFssF"


@pytest.mark.parametrize("name", ["prefill.onnx", "model.safetensors", "cases/prefill-2.npz", "tokenizer.json"])
def test_one_changed_byte_is_refused_and_accepted_on_request(tiny_copy: Path, name: str) -> None:
    data = bytearray((tiny_copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tiny_copy / name).write_bytes(data)
    with pytest.raises(BundleError, match=rf"{name.split('/')[-1]} was modified: sha256"):
        Bundle.open(tiny_copy)
    Bundle.open(tiny_copy, allow_modified=True)


def test_a_missing_file_is_refused_even_on_request(tiny_copy: Path) -> None:
    (tiny_copy / "model.safetensors").unlink()
    with pytest.raises(BundleError, match=r"model\.safetensors is missing"):
        Bundle.open(tiny_copy, allow_modified=True)


def test_a_manifest_that_points_outside_is_refused(tiny_copy: Path) -> None:
    manifest = Bundle.open(tiny_copy).manifest
    write_manifest(tiny_copy, replace(manifest, files=(FileEntry("../../etc/passwd", 1, "0"),)))
    with pytest.raises(BundleError, match="leaves the bundle folder"):
        Bundle.open(tiny_copy)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda data: data.update(schema_version=99), "schema_version 99, expected 2"),
        (lambda data: data["model"].pop("vocab_size"), r"model\.vocab_size"),
        (lambda data: data["graphs"].update(decode=3), r"graphs\.decode"),
    ],
)
def test_a_manifest_of_another_form_is_refused_with_the_place(tiny_copy: Path, edit: object, message: str) -> None:
    path = tiny_copy / "manifest.json"
    data = json.loads(path.read_text())
    edit(data)  # type: ignore[operator]
    path.write_text(json.dumps(data))
    with pytest.raises(BundleError, match=message):
        Bundle.open(tiny_copy)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]"])
def test_a_manifest_that_is_no_json_object_is_refused(tiny_copy: Path, content: bytes) -> None:
    (tiny_copy / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match="export the model again"):
        Bundle.open(tiny_copy)


def test_other_folders_are_no_bundles(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a bundle"):
        Bundle.open(tmp_path)
    with pytest.raises(BundleError, match="no such folder"):
        Bundle.open(tmp_path / "absent")
