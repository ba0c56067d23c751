"""Makes a bundle of a foreign package: its files untouched and hashed, and a manifest that says what they do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from kvparity.exporter.contract.bundle import MANIFEST, SCHEMA_VERSION, Bundle, file_entry, inside, write_manifest
from kvparity.exporter.contract.cases import Case
from kvparity.exporter.contract.errors import BundleError, KvparityError
from kvparity.exporter.contract.files import copy_file
from kvparity.exporter.contract.foreign import Foreign, ForeignGraph, Offer
from kvparity.exporter.contract.manifest import FileEntry, GraphEntry, Manifest
from kvparity.exporter.contract.spec import (
    DECODE,
    ExportOptions,
    GraphKind,
    GraphSpec,
    ModelSpec,
    past_name,
    present_name,
)
from kvparity.runners.adopt.graph import GraphFile, read_graph
from kvparity.runners.adopt.measure import BATCH, CHUNKS, MASK, Measured, measure
from kvparity.runners.adopt.package import Package
from kvparity.runners.adopt.ports import extra_input, recognise_inputs, recognise_outputs
from kvparity.runners.base import Array, RunnerSpec
from kvparity.runners.isolation.limits import settings
from kvparity.runners.isolation.process import open_isolated

__all__ = ["FOLDER", "ROUNDED_ACTIVATIONS", "adopt", "listed_files", "playable"]

FOLDER = "package"  # of the foreign files inside the bundle
ROUNDED_ACTIVATIONS = "activations"
_DTYPES = ("float16", "bfloat16")


def adopt(package: Package, model: ModelSpec, folder: Path) -> Manifest:
    """Copy a package into a folder and describe it; cases and references are not there yet.

    Args:
        package: What was found.
        model: What the checkpoint is that it is judged against.
        folder: The bundle being written.

    Raises:
        BundleError: A graph cannot be read, its ports are not those of such a model, or it does not run.
    """
    files = {kind: read_graph(inside(package.root, name), package.root) for kind, name in package.graphs.items()}
    merged = len(set(package.graphs.values())) == 1
    places = {DECODE: files[DECODE]} if merged else files
    for graph in places.values():
        _copy(package, graph, folder)
    foreign = Foreign(package.kind, {kind: _foreign(kind, graph, model, merged) for kind, graph in files.items()})
    entries = {kind: _entry(kind, graph, package, folder) for kind, graph in places.items()}
    dtype = _dtype(foreign, files[DECODE])
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        model=replace(model, dtype=dtype),
        source="",
        revision=None,
        options=ExportOptions(dtype=dtype),  # type: ignore[arg-type]
        weights=(),
        graphs=entries,
        foreign=foreign,
    )
    write_manifest(folder, manifest)  # what runs it now reads it from there
    ports = {kind: {port.name: port for port in graph.inputs} for kind, graph in places.items()}
    with _running(Bundle(folder, manifest)) as run:
        measured = measure(foreign, ports, model, run)
    foreign = measured.foreign
    if any(graph.rounds for graph in places.values()):
        rounds = Offer(ROUNDED_ACTIVATIONS, True, "rounded to 8 bits in products with quantised weights")
        foreign = replace(foreign, offers=(*foreign.offers, rounds))
    return replace(manifest, foreign=foreign, options=_options(dtype, measured))


def playable(cases: Sequence[Case], foreign: Foreign) -> tuple[tuple[Case, ...], tuple[str, ...]]:
    """The cases that a package can play, and why the others are left out."""
    kept: list[Case] = []
    reasons: dict[str, None] = {}
    for case in cases:
        lacks = [
            name
            for name, asked in (
                (BATCH, case.width > 1),
                (MASK, not case.mask.all()),
                (CHUNKS, any(step.graph == DECODE and step.tokens > 1 for step in case.steps())),
            )
            if asked and not foreign.offers_it(name)
        ]
        if case.moves and foreign.extra_rows:
            lacks.append("caches that a host cuts or joins, with rows beyond the window's")
        if lacks:
            reasons.update(dict.fromkeys(lacks))
        else:
            kept.append(case)
    return tuple(kept), tuple(reasons)


def listed_files(folder: Path, manifest: Manifest) -> tuple[FileEntry, ...]:
    """What lies in an adopted bundle and is not listed otherwise: data files, config and tokenizer."""
    known = {entry.path for entry in manifest.all_files()} | {MANIFEST}
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return tuple(file_entry(folder, path) for path in found if path.relative_to(folder).as_posix() not in known)


def _options(dtype: str, measured: Measured) -> ExportOptions:
    sliding = "bounded" if measured.bounded else "full"
    return ExportOptions(dtype=dtype, logits=measured.logits, sliding_cache=sliding)  # type: ignore[arg-type]


def _copy(package: Package, graph: GraphFile, folder: Path) -> None:
    """The graph and its data files, at the places that they have in the package."""
    for path in (graph.path, *(graph.path.parent / name for name in graph.data_files)):
        target = folder / FOLDER / path.relative_to(package.root)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            copy_file(path, target)


def _entry(kind: GraphKind, graph: GraphFile, package: Package, folder: Path) -> GraphEntry:
    place = folder / FOLDER / graph.path.relative_to(package.root)
    return GraphEntry(
        file_entry(folder, place), GraphSpec(kind, graph.inputs, graph.outputs), graph.opset, graph.ir_version
    )


def _foreign(kind: GraphKind, graph: GraphFile, model: ModelSpec, merged: bool) -> ForeignGraph:
    """Whose port is which, by names and shapes.

    Raises:
        BundleError: Names the graph and what it lacks.
    """
    try:
        inputs, outputs = recognise_inputs(graph.inputs, model), recognise_outputs(graph.outputs, model)
        extra = tuple(extra_input(port, model) for port in inputs.others)
    except BundleError as error:
        raise BundleError(f"{graph.path.name}: {error}") from error
    wanted = [(slot.slot, part) for slot, part in model.cache_names()]
    taken = [name for name in wanted if past_name(*name) in inputs.names]
    if kind == DECODE and not taken:
        raise BundleError(
            f"{graph.path.name}: takes no past, so only whole prompts can be judged; expected inputs such as "
            f"{past_name(*wanted[0])}"
        )
    if taken and len(taken) != len(wanted):
        missing = next(name for name in wanted if name not in taken)
        raise BundleError(f"{graph.path.name}: takes {len(taken)} caches, and none for {past_name(*missing)}")
    if kind == DECODE and not all(present_name(*name) in outputs.names for name in wanted):
        missing = next(name for name in wanted if present_name(*name) not in outputs.names)
        raise BundleError(f"{graph.path.name}: returns no {present_name(*missing)}")
    ports = {*inputs.names.values(), *outputs.names.values()}
    buffers = {name: rows for name, rows in graph.buffers.items() if name in ports}
    return ForeignGraph(DECODE if merged else kind, inputs.names, outputs.names, extra, buffers=buffers)


def _dtype(foreign: Foreign, graph: GraphFile) -> str:
    """The dtype of its caches, which is what it computes in."""
    names = {name for ours, name in foreign.graphs[DECODE].inputs.items() if ours.startswith("past_key_values.")}
    found = {port.dtype for port in graph.inputs if port.name in names}
    return next((dtype for dtype in _DTYPES if dtype in found), "float32")


@contextmanager
def _running(bundle: Bundle) -> Iterator[Callable[[GraphKind, Mapping[str, Array]], dict[str, Array]]]:
    """ONNX Runtime on the graphs, in a process of its own."""
    try:
        session = open_isolated(bundle, RunnerSpec("ort", dict(settings())))
    except KvparityError as error:
        raise BundleError(f"ONNX Runtime does not load it: {error}") from error
    try:
        yield session.run
    finally:
        session.close()
