"""What ``manifest.json`` says of a bundle: files, graphs, cases, and what was recorded for them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from kvparity.exporter.contract.cases import Move
from kvparity.exporter.contract.foreign import Foreign
from kvparity.exporter.contract.head import HeadRule
from kvparity.exporter.contract.quantization import Quantization
from kvparity.exporter.contract.spec import ExportOptions, GraphKind, GraphSpec, HostInput, ModelSpec

__all__ = [
    "CaseEntry",
    "CheckpointEntry",
    "FileEntry",
    "GraphEntry",
    "HeadEntry",
    "Manifest",
    "Recording",
    "RowEntry",
    "SequenceEntry",
]


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
        near_tie: First token whose choice of experts lies within rounding: from there on a right program may differ.
    """

    name: str
    total: int
    file: FileEntry
    logits: Literal["all", "hidden", "none"] = "none"
    rows: int = 0
    stride: int = 1
    chunks: tuple[int, ...] = ()
    near_tie: int | None = None


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
        batch: Rows of the case.
        total: Slots of the longest row.
        chunks: Tokens of each call.
        first: Graph of the first call; every later one goes to decode.
        why: What the case is there to catch.
        file: ``cases/NAME.npz``: its tokens, mask and positions.
        rows: Where its reference is: row ``r`` is padding, then the beginning of a sequence.
        moves: Where each call continues; empty where each carries all rows and continues the call before it.
    """

    name: str
    batch: int
    total: int
    chunks: tuple[int, ...]
    first: GraphKind
    why: str
    file: FileEntry
    rows: tuple[RowEntry, ...] = ()
    moves: tuple[Move, ...] = ()


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
        unread: Why the references were recorded with the bundle's weights and not with this; empty where with this.
    """

    path: str | None
    subfolder: str
    gguf: str | None
    adapter: str | None
    files: tuple[FileEntry, ...]
    adapter_files: tuple[FileEntry, ...] = ()
    unread: str = ""


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
        cut: How far PyTorch in float64 is from itself when a text is cut into other calls, where it is at all; cases
            are then recorded in their own calls.
        quantization: Which weights are quantised, and what that cost; None where none is.
        checkpoint: The checkpoint's files, which references are recorded from.
        foreign: Of an adopted bundle: whose graphs they are, and how ours are played by them.
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
    cut: float = 0.0
    host_inputs: tuple[HostInput, ...] = ()
    quantization: Quantization | None = None
    checkpoint: CheckpointEntry | None = None
    foreign: Foreign | None = None

    def all_files(self) -> Iterator[FileEntry]:
        """Every file that the manifest vouches for."""
        yield from (graph.file for graph in self.graphs.values())
        yield from self.weights
        yield from (case.file for case in self.cases)
        yield from (sequence.file for sequence in self.sequences)
        if self.head is not None:
            yield self.head.file
        yield from self.files

    @property
    def sha256(self) -> str:
        """Hash of all that a verdict depends on: graphs, weights, cases and what was recorded for them."""
        beside = {file.path for file in self.files}
        judged = sorted((file.path, file.sha256) for file in self.all_files() if file.path not in beside)
        return hashlib.sha256(repr(judged).encode()).hexdigest()

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

    def near_tie(self, case: CaseEntry) -> int | None:
        """Slot of a case's first token whose choice of experts lies within rounding; None where there is none."""
        known = {sequence.name: sequence.near_tie for sequence in self.sequences}
        found = [(known.get(row.sequence), row.pad) for row in case.rows]
        return min((tie + pad for tie, pad in found if tie is not None and tie + pad < case.total), default=None)

    def near_tie_line(self) -> str:
        """Which cases have near ties of routing, in words; empty where none has."""
        ties = {case.name: tie for case in self.cases if (tie := self.near_tie(case)) is not None}
        words = ", ".join(f"{name} from token {tie}" for name, tie in ties.items())
        return f"near ties of routing, where rounding may choose another expert: {words}" if ties else ""

    def recorded_line(self) -> str:
        """What was recorded for the cases, in words."""
        made = [sequence for sequence in self.sequences if sequence.logits != "none"]
        cases = f"{sum(map(self.is_recorded, self.cases))} of {len(self.cases)} cases recorded"
        if not made:
            return cases
        positions, rows = sum(item.total for item in made), sum(item.rows for item in made)
        size = sum(item.file.bytes for item in made) + (self.head.file.bytes if self.head else 0)
        words = f"{cases}: {len(made)} sequences of {positions:,} positions in {size / 1e6:.1f} MB"
        if self.head is not None:
            words += ", logits as hidden states"
        words += f", {rows:,} of their cache rows" if rows < positions else ""
        cut = f"; each in its own calls, as transformers differs by {self.cut:.2g} with the cut" if self.cut else ""
        return words + cut


@dataclass(frozen=True)
class Recording:
    """What a recorder made: sequences and cases, and the reference's own float32 noise by output kind."""

    cases: tuple[CaseEntry, ...]
    noise: dict[str, float]
    sequences: tuple[SequenceEntry, ...] = ()
    head: HeadEntry | None = None
    cut: float = 0.0  # see Manifest
    unread: str = ""  # why the reference had the bundle's weights and not the checkpoint's
