"""A bundle on disk: manifest, graphs, weights, vectors; read only when unchanged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from kvparity.exporter.contract.cases import Case, IntArray, master_of, masters
from kvparity.exporter.contract.errors import BundleError, TraceError
from kvparity.exporter.contract.files import bring_back
from kvparity.exporter.contract.head import Head, HeadRule, stored_tensors
from kvparity.exporter.contract.npz import read_npz, write_npz
from kvparity.exporter.contract.quantization import Quantization
from kvparity.exporter.contract.spec import DECODE, PREFILL, ExportOptions, GraphKind, GraphSpec, HostInput, ModelSpec
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


@dataclass(frozen=True)
class FileEntry:
    """One file of a bundle: POSIX path inside it, size in bytes, sha256 in hex."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class GraphEntry:
    """One graph: its file, its ports, and what an engine must support to read it."""

    file: FileEntry
    spec: GraphSpec
    opset: dict[str, int]
    ir_version: int
    needs: str = ""


@dataclass(frozen=True)
class SequenceEntry:
    """One sequence of tokens, and what the reference computed for it.

    Attributes:
        name: Of a case that needs all of it.
        total: Tokens.
        file: ``vectors/NAME.npz``: the tokens, and the reference vectors where they were recorded.
        logits: ``all`` of them, the ``hidden`` states that they are rebuilt from, or ``none``: nothing was recorded.
        rows: Cache rows that were recorded; fewer than ``total`` where they are a sample.
        stride: Of the rows between the edges of a sample; 1 where all were recorded.
        chunks: Tokens of each call of the reference's own pass; one call where that is not said otherwise.
    """

    name: str
    total: int
    file: FileEntry
    logits: Literal["all", "hidden", "none"] = "none"
    rows: int = 0
    stride: int = 1
    chunks: tuple[int, ...] = ()


@dataclass(frozen=True)
class RowEntry:
    """One batch row of a case: padding, then the beginning of a sequence."""

    sequence: str
    pad: int = 0


@dataclass(frozen=True)
class CaseEntry:
    """One case.

    Attributes:
        name: Short and unique.
        batch: Rows.
        total: Slots after the last call.
        chunks: Tokens of each call.
        first: Graph of the first call; every later one goes to decode.
        why: What the case is there to catch.
        file: ``cases/NAME.npz``: its tokens, mask and positions.
        rows: Where its reference is: row ``r`` is padding, then the beginning of a sequence.
    """

    name: str
    batch: int
    total: int
    chunks: tuple[int, ...]
    first: GraphKind
    why: str
    file: FileEntry
    rows: tuple[RowEntry, ...] = ()


@dataclass(frozen=True)
class HeadEntry:
    """How logits are rebuilt from hidden states.

    Attributes:
        rule: Weight, bias, scale and softcap.
        width: Columns of the weight.
        file: ``vectors/head.npz``: ``products``, what every row of the checkpoint's own head gives for fixed vectors.
    """

    rule: HeadRule
    width: int
    file: FileEntry


@dataclass(frozen=True)
class CheckpointEntry:
    """The checkpoint that a bundle was made from; ``compare --live`` looks for it and recognises it by its hashes.

    Attributes:
        path: Way to its folder from the bundle's, POSIX; None where they lie too far apart to be found together.
        subfolder: Folder inside a hub repository, empty where there is none.
        gguf: Name of the GGUF file, where it is one.
        adapter: Way to the folder of the adapter that was merged into it, or that folder's name; None without one.
        files: Config and weights, by name inside its folder.
        adapter_files: The adapter's.
    """

    path: str | None
    subfolder: str
    gguf: str | None
    adapter: str | None
    files: tuple[FileEntry, ...]
    adapter_files: tuple[FileEntry, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """Everything that a consumer of a bundle has to know; ``manifest.json``.

    Attributes:
        schema_version: Version of this layout.
        model: The model as read from its config.
        source: Where the checkpoint came from: a hub id, or the base name of a local folder or file.
        revision: Hub revision, where there is one.
        options: How the bundle was made.
        weights: Files of external data that both graphs point at.
        graphs: By kind, ``prefill`` and ``decode``.
        cases: Cases: cuts of the sequences.
        sequences: What was recorded.
        head: Rebuilds logits where hidden states were recorded; None elsewhere.
        files: Everything else: config, tokenizer, scripts.
        versions: Packages that made the bundle.
        noise: Largest |PyTorch float32 - PyTorch float64| over the recorded cases, by output kind.
        quantization: Which weights are quantised, and what that cost; None where none is.
        checkpoint: The checkpoint's files, which references are recorded from.
        host_inputs: Inputs beyond the contract's that the host computes, with their formulas (profile ``bare``).
    """

    schema_version: int
    model: ModelSpec
    source: str
    revision: str | None
    options: ExportOptions
    weights: tuple[FileEntry, ...]
    graphs: dict[GraphKind, GraphEntry]
    cases: tuple[CaseEntry, ...] = ()
    sequences: tuple[SequenceEntry, ...] = ()
    head: HeadEntry | None = None
    files: tuple[FileEntry, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    noise: dict[str, float] = field(default_factory=dict)
    host_inputs: tuple[HostInput, ...] = ()
    quantization: Quantization | None = None
    checkpoint: CheckpointEntry | None = None

    def all_files(self) -> Iterator[FileEntry]:
        """Every file that the manifest vouches for."""
        yield from (graph.file for graph in self.graphs.values())
        yield from self.weights
        yield from (case.file for case in self.cases)
        yield from (sequence.file for sequence in self.sequences)
        if self.head is not None:
            yield self.head.file
        yield from self.files

    def sequences_of(self, case: CaseEntry) -> tuple[SequenceEntry, ...]:
        """The sequence of each row of a case."""
        known = {sequence.name: sequence for sequence in self.sequences}
        return tuple(known[row.sequence] for row in case.rows if row.sequence in known)

    def vector_files(self, case: CaseEntry) -> tuple[FileEntry, ...]:
        """The inputs of a case, and what its reference lies in."""
        found = self.sequences_of(case)
        head = [self.head.file] if self.head is not None and any(item.logits == "hidden" for item in found) else []
        return (case.file, *(sequence.file for sequence in found), *head)

    def is_recorded(self, case: CaseEntry) -> bool:
        """Whether the reference of a case was recorded."""
        found = self.sequences_of(case)
        return len(found) == case.batch and all(sequence.logits != "none" for sequence in found)


@dataclass(frozen=True)
class Recording:
    """What a recorder made: sequences and cases, and the reference's own float32 noise by output kind."""

    cases: tuple[CaseEntry, ...]
    noise: dict[str, float]
    sequences: tuple[SequenceEntry, ...] = ()
    head: HeadEntry | None = None


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
    _head: list[Head] = field(default_factory=list, init=False, repr=False, compare=False)

    @staticmethod
    def open(root: Path, *, allow_modified: bool = False) -> Bundle:
        """Open a bundle folder and check that every file is the one its manifest names.

        Args:
            root: The bundle's folder.
            allow_modified: Accept files whose sha256 differs; missing files are refused all the same, but for those
                of cases (:meth:`missing_cases`).

        Raises:
            BundleError: Not a bundle, another schema version, a file missing, modified or outside the folder.
        """
        manifest = _read_manifest(root)
        vectors = {file.path for case in manifest.cases for file in manifest.vector_files(case)}
        for entry in manifest.all_files():
            path = inside(root, entry.path)
            if not path.is_file() and entry.path in vectors:  # of use to judges only, and large: often left out
                continue
            if not path.is_file():
                raise BundleError(f"{root}: {entry.path} is missing; export again or restore the file")
            if not allow_modified:
                _check_unmodified(root, path, entry)
        return Bundle(root, manifest)

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
        return read_case(inside(self.root, entry.file.path), name)

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
    return CaseEntry(case.name, case.batch, case.total, case.chunks, case.first, case.why, file_entry(root, path), rows)


def read_case(path: Path, name: str) -> Case:
    """Read a file written by :func:`write_case`.

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
    return Case(name, data["input_ids"].astype(np.int64), chunks, pads, first, why)


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
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return FileEntry(path.relative_to(root).as_posix(), path.stat().st_size, digest)


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
