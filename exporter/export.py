"""The pipeline: checkpoint in, bundle out, one report per stage; a failed stage leaves nothing behind."""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from exporter import worker
from exporter.bundle import (
    SCHEMA_VERSION,
    Bundle,
    FileEntry,
    GraphEntry,
    Manifest,
    Recording,
    file_entry,
    new_folder,
    unrecorded_case,
    write_manifest,
)
from exporter.cases import Case, default_cases
from exporter.check import check_graph
from exporter.checkpoint import Checkpoint
from exporter.describe import model_spec
from exporter.errors import ExportError, KvparityError
from exporter.lowering import default_opset
from exporter.needs import needs
from exporter.packages.golden import write_golden
from exporter.ports import graph_spec, host_inputs, settled
from exporter.quantize.plan import plan
from exporter.quantize.stage import held_blocks, quantize_weights
from exporter.spec import DECODE, PREFILL, ExportOptions, GraphKind, ModelSpec
from exporter.tokenizer import copy_tokenizer, sample_text
from exporter.weights import Placement, place_weights

__all__ = ["Stage", "export"]


@dataclass(frozen=True)
class Stage:
    """One finished stage: its name, wall seconds, peak resident memory of any process so far in MB, and a remark."""

    name: str
    seconds: float
    peak_mb: float
    note: str = ""


Recorder = Callable[[Bundle, Any], Recording]
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
        in_process: Trace here, one graph after the other: less wall time for tiny models, more for all others.

    Returns:
        The bundle.

    Raises:
        ExportError: Names the stage that failed.
    """
    with new_folder(target) as folder:
        with _stage("read", report):
            config = checkpoint.config()
            config.save_pretrained(folder)  # the workers read it there: parsing a GGUF file takes seconds each time
            shell = checkpoint.shell(config)
            spec = model_spec(config, shell, options.dtype)
            options = settled(options, spec)
            chosen = plan(shell, options)
            copy_tokenizer(checkpoint, folder)
        with _stage("weights", report):
            placements = place_weights(checkpoint, shell, folder, options.dtype)
            source = held_blocks(checkpoint, shell, options) if chosen else None
            del shell
        quantization = None
        if chosen:
            with _stage("quantize", report):
                placements, quantization = quantize_weights(
                    folder, placements, chosen, config, spec, options, text, source
                )
        with _stage("trace", report):
            _trace(checkpoint, folder, options, placements, in_process)
        with _stage("check", report):
            graphs = _graphs(folder, spec, options)
            files = _copy_files(checkpoint, folder)
        locations = sorted({place.location for place in placements.values()})
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            model=spec,
            source=checkpoint.source,
            revision=checkpoint.revision,
            options=replace(options, opset=options.opset or default_opset(options)),
            weights=tuple(file_entry(folder, folder / name) for name in locations),
            graphs=graphs,
            files=files,
            versions=_versions(),
            host_inputs=host_inputs(spec, options),
            quantization=quantization,
        )
        cases = default_cases(spec, sample_text(folder, 4096), limit, options.max_len)
        with _stage("vectors", report):
            recording = record(Bundle(folder, manifest), cases) if record else _unrecorded(folder, cases)
            manifest = replace(manifest, cases=recording.cases, noise=recording.noise)
            golden = write_golden(folder, manifest, Bundle(folder, manifest).vectors)
            manifest = replace(manifest, files=(*manifest.files, *golden))
        write_manifest(folder, manifest)
    return Bundle(target, manifest)


@contextmanager
def _stage(name: str, report: Report) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    except KvparityError as error:
        raise ExportError(f"stage {name}: {error}") from error
    except OSError as error:
        where = f" ({Path(error.filename).name})" if error.filename else ""
        raise ExportError(f"stage {name}: {error.strerror or error}{where}; nothing was written") from error
    report(Stage(name, time.perf_counter() - start, _peak_mb()))


def _peak_mb() -> float:
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(kind).ru_maxrss for kind in kinds) / 1024


def _trace(
    checkpoint: Checkpoint, folder: Path, options: ExportOptions, placements: dict[str, Placement], in_process: bool
) -> None:
    scratch = folder / "scratch"
    scratch.mkdir()
    jobs = [
        worker.Job(
            checkpoint.source,
            str(folder),
            None,
            kind,
            options,
            placements,
            str(folder / f"{kind}.onnx"),
            _own_version(),
        )
        for kind in (PREFILL, DECODE)
    ]
    if in_process:
        for job in jobs:
            worker.trace(job)
        scratch.rmdir()
        return
    running = [(job.kind, worker.start(job, scratch)) for job in jobs]
    try:
        for kind, process in running:
            worker.wait(process, kind)
    finally:
        for _, process in running:
            if process.poll() is None:
                process.kill()
                process.wait()
    shutil.rmtree(scratch)


def _graphs(folder: Path, spec: ModelSpec, options: ExportOptions) -> dict[GraphKind, GraphEntry]:
    graphs: dict[GraphKind, GraphEntry] = {}
    kinds: tuple[GraphKind, ...] = (PREFILL, DECODE)
    for kind in kinds:
        path = folder / f"{kind}.onnx"
        ports = graph_spec(kind, spec, options)
        model = check_graph(path, ports, options)
        graphs[kind] = GraphEntry(
            file_entry(folder, path), ports, dict(model.opset_imports), model.ir_version, needs(model)
        )
    return graphs


def _copy_files(checkpoint: Checkpoint, folder: Path) -> tuple[FileEntry, ...]:
    """Generation config beside config and tokenizer, so that the bundle is a model folder of its own."""
    if checkpoint.gguf is None and (checkpoint.folder / "generation_config.json").is_file():
        shutil.copyfile(checkpoint.folder / "generation_config.json", folder / "generation_config.json")
    own = {"prefill.onnx", "decode.onnx"}
    others = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in own and p.suffix != ".safetensors")
    return tuple(file_entry(folder, path) for path in others)


def _unrecorded(folder: Path, cases: tuple[Case, ...]) -> Recording:
    return Recording(tuple(unrecorded_case(folder, case) for case in cases), {})


def _own_version() -> str:
    try:
        return version("kvparity")
    except PackageNotFoundError:
        return "0"


def _versions() -> dict[str, str]:
    names = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "numpy")
    return {"kvparity": _own_version(), **{name: version(name) for name in names}}
