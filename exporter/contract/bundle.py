"""A bundle on disk: manifest, graphs, weights, vectors; read only when unchanged."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from pydantic import TypeAdapter, ValidationError

from kvparity.exporter.contract.cases import Case, IntArray, Move, master_of, masters
from kvparity.exporter.contract.errors import BundleError, TraceError
from kvparity.exporter.contract.files import bring_back
from kvparity.exporter.contract.hashes import digest, started
from kvparity.exporter.contract.head import Head, stored_tensors
from kvparity.exporter.contract.manifest import (
    CaseEntry,
    CheckpointEntry,
    FileEntry,
    GraphEntry,
    HeadEntry,
    Manifest,
    Recording,
    RowEntry,
    SequenceEntry,
)
from kvparity.exporter.contract.npz import read_npz, write_npz
from kvparity.exporter.contract.spec import DECODE, PREFILL, ExportOptions, GraphKind, ModelSpec
from kvparity.exporter.contract.vectors import Recorded, Vectors, cut

__all__ = [
    "MANIFEST",
    "SCHEMA_VERSION",
    "Bundle",
    "CaseEntry",
    "CheckpointEntry",
    "FileEntry",
    "GraphEntry",
    "HeadEntry",
    "Manifest",
    "Recording",
    "RowEntry",
    "SequenceEntry",
    "file_entry",
    "read_case",
    "unrecorded",
    "write_case",
    "write_sequence",
]

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"


_ADAPTER: TypeAdapter[Manifest] = TypeAdapter(Manifest)


@dataclass(frozen=True)
class Bundle:
    """An opened bundle.

    Attributes:
        root: Its folder.
        manifest: What is in it.
        weights_root: Folder of the weights where that is another, as for vectors that are recorded live.
    """

    root: Path
    manifest: Manifest
    weights_root: Path | None = None
    _checks: list[Future[None]] = field(default_factory=list, init=False, repr=False, compare=False)
    _head: list[Head] = field(default_factory=list, init=False, repr=False, compare=False)

    @staticmethod
    def open(root: Path, *, allow_modified: bool = False, wait: bool = True) -> Bundle:
        """Open a bundle folder and check that every file is the one its manifest names.

        Args:
            root: The bundle's folder.
            allow_modified: Accept files whose sha256 differs; missing files are refused all the same, but for those
                of cases (:meth:`missing_cases`).
            wait: Hash every file before the bundle is given; otherwise :meth:`verified` says what was found, and
                nothing that was made of the bundle may be used before.

        Raises:
            BundleError: Not a bundle, another schema version, a file missing, modified or outside the folder.
        """
        manifest = _read_manifest(root)
        checks: list[Callable[[], None]] = []
        vectors = {file.path for case in manifest.cases for file in manifest.vector_files(case)}
        for entry in manifest.all_files():
            path = inside(root, entry.path)
            if not path.is_file() and entry.path in vectors:  # of use to judges only, and large: often left out
                continue
            if not path.is_file():
                raise BundleError(f"{root}: {entry.path} is missing; export again or restore the file")
            if not allow_modified:
                checks.append(partial(_check_unmodified, root, path, entry))
        opened = Bundle(root, manifest)
        opened._checks.extend(started(checks))
        if wait:
            opened.verified()
        return opened

    def verified(self) -> None:
        """Wait until every file was hashed.

        Raises:
            BundleError: A file is not the one that the manifest names.
        """
        while self._checks:
            self._checks.pop(0).result()

    @property
    def model(self) -> ModelSpec:
        """The model's description."""
        return self.manifest.model

    @property
    def options(self) -> ExportOptions:
        """How the bundle was made."""
        return self.manifest.options

    def missing_cases(self) -> tuple[str, ...]:
        """Cases whose files the manifest lists and the folder does not have."""
        made, there = self.manifest, lambda file: inside(self.root, file.path).is_file()
        return tuple(case.name for case in made.cases if not all(map(there, made.vector_files(case))))

    def graph(self, kind: GraphKind) -> GraphEntry:
        """A graph's entry.

        Raises:
            BundleError: The bundle has no such graph.
        """
        if kind not in self.manifest.graphs:
            raise BundleError(f"{self.root}: has no {kind} graph; it has {', '.join(self.manifest.graphs)}")
        return self.manifest.graphs[kind]

    def graph_path(self, kind: GraphKind) -> Path:
        """Path of a graph's file."""
        return inside(self.root, self.graph(kind).file.path)

    def vectors(self, name: str) -> Vectors:
        """The recorded reference vectors of a case.

        Raises:
            BundleError: The bundle has no such case, or it was not recorded.
        """
        entry = self._entry(name)
        if not self.manifest.is_recorded(entry):
            raise BundleError(f"{self.root}: case {name} was not recorded; judge it with --live")
        recorded = [Recorded.load(inside(self.root, item.file.path)) for item in self.manifest.sequences_of(entry)]
        return cut(self.case(name), recorded, self.head())

    def case(self, name: str) -> Case:
        """The tokens and calls of a case, recorded or not.

        Raises:
            BundleError: The bundle has no such case.
            TraceError: Its file is unreadable.
        """
        entry = self._entry(name)
        return read_case(inside(self.root, entry.file.path), name, entry.moves)

    def head(self) -> Head | None:
        """What rebuilds logits from hidden states, its rows checked; None where logits were recorded themselves."""
        entry = self.manifest.head
        if entry is None:
            return None
        if not self._head:
            paths = [inside(self.weights_root or self.root, file.path) for file in self.manifest.weights]
            head = Head(entry.rule, stored_tensors(paths), entry.width)
            head.check(np.asarray(read_npz(inside(self.root, entry.file.path))["products"], np.float64))
            self._head.append(head)
        return self._head[0]

    @property
    def known_head(self) -> Head | None:
        """:meth:`head` where it was used already."""
        return self._head[0] if self._head else None

    def _entry(self, name: str) -> CaseEntry:
        for entry in self.manifest.cases:
            if entry.name == name:
                return entry
        known = ", ".join(case.name for case in self.manifest.cases)
        raise BundleError(f"{self.root}: has no case {name!r}; it has {known or 'none'}")


def write_case(root: Path, case: Case, known: Mapping[str, IntArray]) -> CaseEntry:
    """Write ``cases/NAME.npz``, and describe a case whose rows begin some of these sequences."""
    path = root / "cases" / f"{case.name}.npz"
    path.parent.mkdir(exist_ok=True)
    inputs = {"input_ids": case.tokens, "attention_mask": case.mask, "position_ids": case.positions}
    calls = {"chunks": np.asarray(case.chunks, np.int64), "first": np.asarray(case.first), "why": np.asarray(case.why)}
    write_npz(path, {**inputs, **calls})
    rows = tuple(RowEntry(master_of(case.row(row), known) or "", case.pads[row]) for row in range(case.batch))
    file = file_entry(root, path)
    return CaseEntry(case.name, case.batch, case.total, case.chunks, case.first, case.why, file, rows, case.moves)


def read_case(path: Path, name: str, moves: tuple[Move, ...] = ()) -> Case:
    """Read a file written by :func:`write_case`; the manifest has its moves.

    Raises:
        TraceError: It is unreadable or lacks a key of the format.
    """
    data = read_npz(path)
    missing = sorted({"input_ids", "attention_mask", "chunks", "first"} - data.keys())
    if missing:
        raise TraceError(f"{path}: a case's inputs lack {', '.join(missing)}; found {sorted(data)[:8]}")
    pads = tuple(int(n) for n in (data["attention_mask"] == 0).sum(axis=1))
    chunks = tuple(int(n) for n in data["chunks"])
    first = DECODE if data["first"].item() == DECODE else PREFILL
    why = str(data["why"].item()) if "why" in data else ""
    return Case(name, data["input_ids"].astype(np.int64), chunks, pads, first, why, moves)


def write_sequence(root: Path, name: str, recorded: Recorded) -> FileEntry:
    """Write ``vectors/NAME.npz``."""
    path = root / "vectors" / f"{name}.npz"
    path.parent.mkdir(exist_ok=True)
    recorded.save(path)
    return file_entry(root, path)


def unrecorded(root: Path, cases: Sequence[Case]) -> Recording:
    """Keep the tokens of cases without any reference vectors."""
    known = masters(cases)
    files = {name: write_sequence(root, name, Recorded(tokens)) for name, tokens in known.items()}
    sequences = tuple(SequenceEntry(name, len(known[name]), file) for name, file in files.items())
    return Recording(tuple(write_case(root, case, known) for case in cases), {}, sequences)


def inside(root: Path, name: str) -> Path:
    """Resolve a file name that a manifest or a graph gives, refusing a name that leaves the folder.

    A link that lies in the folder is followed, as every tool does: whoever made the folder laid it, and hub caches are
    made of links. What a manifest or a graph can name is only what lies in the folder, and hashes still have to match.

    Raises:
        BundleError: The name is absolute or climbs out.
    """
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or not parts.parts or ":" in name:
        raise BundleError(f"{root}: file name {name!r} leaves the bundle folder; refused")
    return root.joinpath(*parts.parts)


def file_entry(root: Path, path: Path) -> FileEntry:
    """Describe a file below ``root``: relative path, size, sha256."""
    return FileEntry(path.relative_to(root).as_posix(), path.stat().st_size, digest(path))


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Write ``manifest.json``: sorted keys, the same manifest gives the same bytes."""
    data = _ADAPTER.dump_python(manifest, mode="json")
    (root / MANIFEST).write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _read_manifest(root: Path) -> Manifest:
    path = root / MANIFEST
    bring_back(root)
    if not root.is_dir():
        raise BundleError(f"{root}: no such folder; expected a bundle made by `export`")
    if not path.is_file():
        raise BundleError(f"{root}: not a bundle, {MANIFEST} is missing; expected a folder made by `export`")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        found = data.get("schema_version") if isinstance(data, dict) else None
        if found == 1:
            raise BundleError(
                f"{root}: was made by an earlier version (schema_version 1, expected {SCHEMA_VERSION}), whose "
                "reference vectors are laid out otherwise: export the model again with the same options"
            )
        if found != SCHEMA_VERSION:
            raise BundleError(f"{path}: schema_version {found}, expected {SCHEMA_VERSION}; export the model again")
        return _ADAPTER.validate_python(data)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise BundleError(f"{path}: not readable JSON ({error}); export the model again") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{path}: {place}: {first['msg']}; export the model again") from error


def _check_unmodified(root: Path, path: Path, entry: FileEntry) -> None:
    size = path.stat().st_size
    if size != entry.bytes:
        raise BundleError(
            f"{root}: {entry.path} was modified: {size} bytes, expected {entry.bytes}; pass --allow-modified to use it"
        )
    found = file_entry(root, path).sha256
    if found != entry.sha256:
        raise BundleError(
            f"{root}: {entry.path} was modified: sha256 {found[:12]}…, expected {entry.sha256[:12]}…; "
            "pass --allow-modified to use it"
        )
