"""A bundle on disk: manifest, graphs, weights, vectors; read only when unchanged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pydantic import TypeAdapter, ValidationError

from kvparity.exporter.contract.cases import Case
from kvparity.exporter.contract.errors import BundleError
from kvparity.exporter.contract.files import bring_back
from kvparity.exporter.contract.quantization import Quantization
from kvparity.exporter.contract.spec import ExportOptions, GraphKind, GraphSpec, HostInput, ModelSpec
from kvparity.exporter.contract.vectors import Vectors

__all__ = [
    "MANIFEST",
    "SCHEMA_VERSION",
    "Bundle",
    "CaseEntry",
    "CheckpointEntry",
    "FileEntry",
    "GraphEntry",
    "Manifest",
    "Recording",
    "file_entry",
]

SCHEMA_VERSION = 1
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
class CaseEntry:
    """One case.

    ``file`` holds the reference vectors; it is None where they were not recorded and the case can only be judged
    live, and then ``inputs`` holds the tokens.
    """

    name: str
    batch: int
    total: int
    chunks: tuple[int, ...]
    first: GraphKind
    why: str
    file: FileEntry | None = None
    inputs: FileEntry | None = None


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
        cases: Reference cases.
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
        yield from (case.file for case in self.cases if case.file)
        yield from (case.inputs for case in self.cases if case.inputs)
        yield from self.files


@dataclass(frozen=True)
class Recording:
    """What a recorder made: an entry per case, and the reference's own float32 noise by output kind."""

    cases: tuple[CaseEntry, ...]
    noise: dict[str, float]


_ADAPTER: TypeAdapter[Manifest] = TypeAdapter(Manifest)


@dataclass(frozen=True)
class Bundle:
    """An opened bundle."""

    root: Path
    manifest: Manifest

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
        vectors = {file.path for case in manifest.cases for file in (case.file, case.inputs) if file}
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
        files = [(case.name, case.file or case.inputs) for case in self.manifest.cases]
        return tuple(name for name, file in files if file and not inside(self.root, file.path).is_file())

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
        if entry.file is None:
            raise BundleError(f"{self.root}: case {name} was not recorded; judge it with --live")
        return Vectors.load(inside(self.root, entry.file.path), name)

    def case(self, name: str) -> Case:
        """The tokens and calls of a case, recorded or not.

        Raises:
            BundleError: The bundle has no such case, or not its tokens.
        """
        entry = self._entry(name)
        file = entry.file or entry.inputs
        if file is None:
            raise BundleError(f"{self.root}: the tokens of case {name} were not kept; export again")
        return Vectors.load(inside(self.root, file.path), name, inputs_only=entry.file is None).case

    def _entry(self, name: str) -> CaseEntry:
        for entry in self.manifest.cases:
            if entry.name == name:
                return entry
        known = ", ".join(case.name for case in self.manifest.cases)
        raise BundleError(f"{self.root}: has no case {name!r}; it has {known or 'none'}")


def unrecorded_case(root: Path, case: Case) -> CaseEntry:
    """Keep the tokens of a case that has no vectors, as ``cases/NAME.inputs.npz``, and describe it."""
    path = root / "cases" / f"{case.name}.inputs.npz"
    path.parent.mkdir(exist_ok=True)
    Vectors(case, {}).save(path)
    inputs = file_entry(root, path)
    return CaseEntry(case.name, case.batch, case.total, case.chunks, case.first, case.why, inputs=inputs)


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
