"""The pipeline: checkpoint in, bundle out, one report per stage; a failed stage leaves nothing behind."""

from __future__ import annotations

import re
import resource
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from kvparity.exporter.check import check_graph
from kvparity.exporter.checkpoint.adapter import merged
from kvparity.exporter.checkpoint.folder import brings_code
from kvparity.exporter.checkpoint.model_spec import model_spec
from kvparity.exporter.checkpoint.source import Checkpoint
from kvparity.exporter.checkpoint.tokenizer import copy_tokenizer, sample_text
from kvparity.exporter.checkpoint.weights import place_weights
from kvparity.exporter.contract.bundle import (
    MANIFEST,
    SCHEMA_VERSION,
    Bundle,
    CheckpointEntry,
    FileEntry,
    GraphEntry,
    Manifest,
    Recording,
    file_entry,
    unrecorded,
    write_manifest,
)
from kvparity.exporter.contract.cases import Case
from kvparity.exporter.contract.checkpoint_files import CheckpointFiles, checkpoint_entry
from kvparity.exporter.contract.errors import ExportError, KvparityError
from kvparity.exporter.contract.files import new_folder
from kvparity.exporter.contract.gguf_loading import part_paths
from kvparity.exporter.contract.placement import Placement
from kvparity.exporter.contract.ports import graph_spec, host_inputs, resolve_options
from kvparity.exporter.contract.quantization import Quantization
from kvparity.exporter.contract.schedule import default_cases
from kvparity.exporter.contract.spec import DECODE, PREFILL, ExportOptions, GraphKind, ModelSpec
from kvparity.exporter.golden.test_data import write_golden
from kvparity.exporter.minimum_runtime import minimum_runtime
from kvparity.exporter.passes.opset import default_opset
from kvparity.exporter.quantize.plan import plan
from kvparity.exporter.quantize.stage import held_blocks, quantize_weights
from kvparity.exporter.trace.process import Job, Tracer

__all__ = ["Stage", "copy_files", "export", "origin", "versions"]

_UNFINISHED = re.compile(r"/[^:;]*/\.[^/]+\.[0-9a-f]{8}\.tmp/")  # the folder while it is being written


@dataclass(frozen=True)
class Stage:
    """One finished stage: its name, wall seconds, peak resident memory of any process so far in MB, and a remark."""

    name: str
    seconds: float
    peak_mb: float
    note: str = ""


Recorder = Callable[[Bundle, Sequence[Case], CheckpointFiles], Recording]
Report = Callable[[Stage], None]


def export(
    checkpoint: Checkpoint,
    target: Path,
    options: ExportOptions,
    *,
    record: Recorder | None = None,
    report: Report = lambda stage: None,
    limit: int | None = None,
    in_process: bool = False,
    tracer: Tracer | None = None,
    text: Path | None = None,
) -> Bundle:
    """Export a checkpoint.

    Args:
        checkpoint: Where the model comes from.
        target: Folder of the bundle; an earlier bundle there is replaced once the new one is whole.
        options: Layout, profile, dtype and so on.
        record: Makes the reference vectors (the runners' side); None leaves them out.
        report: Called after each stage.
        limit: Longest case in tokens.
        text: File that the cost of quantisation is measured on; None takes stories.
        in_process: Trace here, one graph after the other.
        tracer: The process that traces otherwise, started by the caller to save time; closed at the end.

    Returns:
        The bundle.

    Raises:
        ExportError: Names the stage that failed.
    """
    whole = checkpoint
    with new_folder(target, MANIFEST) as folder, _tracing(tracer, in_process) as process, ExitStack() as stack:
        if whole.adapter is not None:
            with _stage("adapter", report):
                checkpoint = stack.enter_context(merged(whole, options.dtype))
        job = Job(checkpoint.source, str(checkpoint.folder), options, str(folder), _own_version())
        if process and not checkpoint.gguf:
            process.begin(job)
        with _stage("read", report) as notes:
            found, meta_model = _read(checkpoint, folder, options, process, job, notes)
        placements, quantization = _place(checkpoint, folder, found, meta_model, text, report)
        del meta_model
        with _stage("trace", report) as notes:
            if process:
                tracers = process.finish(placements)
            else:
                tracers = _trace_here(replace(job, config=str(folder)), placements)
            notes += [
                f"{' and '.join(k for k in tracers if tracers[k] == each)} by {each}"
                for each in sorted({*tracers.values()})
            ]
        with _stage("check", report):
            manifest = _manifest(checkpoint, folder, found, placements, quantization)
            manifest = replace(manifest, checkpoint=origin(whole, target))
        with _stage("vectors", report):
            manifest = _with_vectors(folder, manifest, whole.files(), record, limit)
        write_manifest(folder, manifest)
    return Bundle(target, manifest)


@dataclass(frozen=True)
class _Found:
    """What reading a checkpoint found out: options with defaults; ``chosen`` is what to quantise, and bits."""

    config: Any
    spec: ModelSpec
    options: ExportOptions
    chosen: dict[str, int]


def _read(
    checkpoint: Checkpoint, folder: Path, options: ExportOptions, process: Tracer | None, job: Job, notes: list[str]
) -> tuple[_Found, Any]:
    """Read config and tokenizer; also returns the model on fake weights. ``notes`` takes what a user should know."""
    config = checkpoint.config()
    config.save_pretrained(folder)
    if process and checkpoint.gguf:  # the worker reads it there: parsing a GGUF file takes seconds each time
        process.begin(replace(job, config=str(folder)))
    meta_model = checkpoint.meta_model(config, options.dtype)
    spec = model_spec(config, meta_model, options.dtype)
    options = resolve_options(options, spec)
    chosen = plan(meta_model, options)
    notes.append(copy_tokenizer(checkpoint, folder))
    if checkpoint.gguf is None and brings_code(checkpoint.folder):
        notes.append(
            f"config.json names Python code of the checkpoint's own (auto_map), which is not run: "
            f"this is transformers' own {spec.architecture}"
        )
    return _Found(config, spec, options, chosen), meta_model


def _place(
    checkpoint: Checkpoint, folder: Path, found: _Found, meta_model: Any, text: Path | None, report: Report
) -> tuple[dict[str, Placement], Quantization | None]:
    """Place the weights, quantised where that was asked for."""
    options = found.options
    with _stage("weights", report):
        placements = place_weights(checkpoint, meta_model, folder)
        source = held_blocks(checkpoint, meta_model, options) if found.chosen else None
    if not found.chosen:
        return placements, None
    with _stage("quantize", report):
        return quantize_weights(folder, placements, found.chosen, found.config, found.spec, options, text, source)


def _manifest(
    checkpoint: Checkpoint,
    folder: Path,
    found: _Found,
    placements: dict[str, Placement],
    quantization: Quantization | None,
) -> Manifest:
    """Check the graphs and describe everything but the cases."""
    spec, options = found.spec, found.options
    graphs = _graphs(folder, spec, options)
    files = copy_files(checkpoint, folder)
    locations = sorted({place.location for place in placements.values()})
    return Manifest(
        schema_version=SCHEMA_VERSION,
        model=spec,
        source=checkpoint.source,
        revision=checkpoint.revision,
        options=replace(options, opset=options.opset or default_opset(options, graphs[DECODE].spec)),
        weights=tuple(file_entry(folder, folder / name) for name in locations),
        graphs=graphs,
        files=files,
        versions=versions(),
        host_inputs=host_inputs(spec, options),
        quantization=quantization,
    )


def origin(checkpoint: Checkpoint, target: Path) -> CheckpointEntry:
    """The checkpoint's config and weights, hashed: by them a comparison recognises it later."""
    names = {"config.json", *(tensor.file.name for tensor in checkpoint.stored().values())}
    if checkpoint.gguf:
        names = {path.name for path in part_paths(checkpoint.folder / checkpoint.gguf)}
    return checkpoint_entry(checkpoint.files(), tuple(sorted(names)), target, checkpoint.subfolder)


def _with_vectors(
    folder: Path, manifest: Manifest, checkpoint: CheckpointFiles, record: Recorder | None, limit: int | None
) -> Manifest:
    """The manifest with its cases, recorded or only listed, and with the golden files."""
    options = manifest.options
    text = sample_text(folder, 4096)
    if max(text, default=0) >= manifest.model.vocab_size:  # the tokenizer is another model's, or had tokens added
        text = ()
    cases = default_cases(manifest.model, text, limit, options)
    if options.groups_queries:  # the operator takes several tokens after a past in a batch of one only
        cases = tuple(case for case in cases if not case.joins_several)
    recording = record(Bundle(folder, manifest), cases, checkpoint) if record else unrecorded(folder, cases)
    assert manifest.checkpoint is not None
    manifest = replace(
        manifest,
        checkpoint=replace(manifest.checkpoint, unread=recording.unread),
        cases=recording.cases,
        noise=recording.noise,
        cut=recording.cut,
        sequences=recording.sequences,
        head=recording.head,
    )
    golden = write_golden(folder, manifest, Bundle(folder, manifest).vectors)
    return replace(manifest, files=(*manifest.files, *golden))


@contextmanager
def _stage(name: str, report: Report) -> Iterator[list[str]]:
    start = time.perf_counter()
    notes: list[str] = []
    try:
        yield notes
    except KvparityError as error:
        raise ExportError(f"stage {name}: {_UNFINISHED.sub('', str(error))}") from error
    except OSError as error:
        where = f" ({Path(error.filename).name})" if error.filename else ""
        raise ExportError(f"stage {name}: {error.strerror or error}{where}; nothing was written") from error
    report(Stage(name, time.perf_counter() - start, _peak_mb(), "; ".join(filter(None, notes))))


def _peak_mb() -> float:
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(kind).ru_maxrss for kind in kinds) / 1024


def _tracing(tracer: Tracer | None, in_process: bool) -> AbstractContextManager[Tracer | None]:
    return nullcontext() if in_process else tracer or Tracer()


def _named(tracers: dict[str, str]) -> list[str]:
    """What traced which graphs, such as ``prefill and decode by recording``."""
    graphs = {each: [kind for kind in (PREFILL, DECODE) if tracers.get(kind) == each] for each in tracers.values()}
    return [f"{' and '.join(kinds)} by {each}" for each, kinds in graphs.items()]


def _trace_here(job: Job, placements: dict[str, Placement]) -> dict[str, str]:
    from kvparity.exporter.trace.worker import trace

    return trace(job, placements)


def _graphs(folder: Path, spec: ModelSpec, options: ExportOptions) -> dict[GraphKind, GraphEntry]:
    graphs: dict[GraphKind, GraphEntry] = {}
    kinds: tuple[GraphKind, ...] = (PREFILL, DECODE)
    for kind in kinds:
        path = folder / f"{kind}.onnx"
        ports = graph_spec(kind, spec, options)
        model = check_graph(path, ports, options)
        graphs[kind] = GraphEntry(
            file_entry(folder, path), ports, dict(model.opset_imports), model.ir_version, minimum_runtime(model)
        )
    return graphs


def copy_files(checkpoint: Checkpoint, folder: Path) -> tuple[FileEntry, ...]:
    """Generation config beside config and tokenizer, so that the bundle is a model folder of its own."""
    if checkpoint.gguf is None and (checkpoint.folder / "generation_config.json").is_file():
        shutil.copyfile(checkpoint.folder / "generation_config.json", folder / "generation_config.json")
    own = {"prefill.onnx", "decode.onnx"}
    others = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in own and p.suffix != ".safetensors")
    return tuple(file_entry(folder, path) for path in others)


def _own_version() -> str:
    try:
        return version("kvparity")
    except PackageNotFoundError:
        return "0"


def versions() -> dict[str, str]:
    """Of the packages that make a bundle."""
    names = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "numpy")
    return {"kvparity": _own_version(), **{name: version(name) for name in names}}
