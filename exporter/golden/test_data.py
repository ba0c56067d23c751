"""Golden vectors for every language: calls as ONNX ``test_data_set_N``, a manifest of how they chain, and a replay.

ONNX's own test runners, and those of most engines, read ``test_data_set_N/{input,output}_I.pb``: one TensorProto per
port, in graph order, with its name set. A few short cases are enough for them; all cases are in the ``.npz`` files.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvparity.exporter.contract.bundle import CaseEntry, FileEntry, GraphEntry, Manifest, file_entry
from kvparity.exporter.contract.host_inputs import compute
from kvparity.exporter.contract.spec import DECODE, PREFILL, past_name, present_name
from kvparity.exporter.contract.vectors import Vectors, expected_pasts
from kvparity.exporter.golden import verify
from kvparity.exporter.golden.readme import LAYOUTS, readme

__all__ = ["write_golden"]

Array = npt.NDArray[np.generic]
SCHEMA_VERSION = 1
MEGABYTES = 16
_MOST_STEPS, _MOST_MOVED = 4, 10  # of a case, and of one whose calls do not just follow each other
_SHARES, _MOVED = 4, 3  # a case takes at most a quarter of the bytes, all cases with moves together a third
_TOL = 1e-4
_NOISE_FACTOR = 8  # for half types: two engines that each round as well as the reference differ by less


def write_golden(
    folder: Path, manifest: Manifest, vectors: Callable[[str], Vectors], *, megabytes: int = MEGABYTES
) -> tuple[FileEntry, ...]:
    """Write the golden vectors, their manifest, a README and ``verify.py`` into a bundle that is being made.

    Args:
        folder: The bundle's folder; ``cases/*.npz`` are there already.
        manifest: With its cases.
        vectors: The recorded vectors of a case by name.
        megabytes: Size of all ``.pb`` files together.

    Returns:
        The files to list in the manifest (``golden.json`` vouches for the ``.pb`` files); ``verify.py`` alone where no
        case was recorded, or no replay in plain numpy is known for the layout: it then says so.
    """
    shutil.copyfile(Path(__file__).with_name("verify.py"), folder / "verify.py")
    recorded = [entry for entry in manifest.cases if manifest.is_recorded(entry)]
    if not recorded or manifest.options.layout not in LAYOUTS:
        return (file_entry(folder, folder / "verify.py"),)
    left = megabytes * 1_000_000
    share = left if manifest.options.layout == "static" else left // _SHARES  # whole buffers are large, and few fit
    moved = left // _MOVED
    cases: list[dict[str, Any]] = []
    for entry in sorted(recorded, key=lambda entry: not entry.moves):
        size = _size(manifest, entry)
        if 0 < size <= min(left, moved if entry.moves else share):
            found = vectors(entry.name)
            if found.known is None or found.known.all():
                left -= size
                moved -= size if entry.moves else 0
                cases.append(_write_case(folder, manifest, entry, found))
    document = {
        "schema_version": SCHEMA_VERSION,
        "tolerance": {manifest.options.dtype: _tolerance(manifest)},
        "chain": _chain(manifest),
        "cases": cases,
    }
    (folder / "cases" / "golden.json").write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", "utf-8")
    (folder / "cases" / "README.md").write_text(readme(manifest), "utf-8")
    names = ("cases/README.md", "cases/golden.json", "verify.py")
    return tuple(file_entry(folder, folder / name) for name in names)


def _tolerance(manifest: Manifest) -> float:
    """Largest difference that passes: what `compare` takes, or more where the dtype itself rounds more than that."""
    if manifest.options.dtype == "float32":
        return _TOL
    return max(_TOL, _NOISE_FACTOR * max(manifest.noise.values(), default=0.0))


def _chain(manifest: Manifest) -> dict[str, str]:
    """Which output becomes which input of the next call."""
    pairs = manifest.model.cache_names()
    return {present_name(slot.slot, part): past_name(slot.slot, part) for slot, part in pairs}


def _size(manifest: Manifest, entry: CaseEntry) -> int:
    """Bytes of a case's tensors, before it is written; 0 for one that is no golden case.

    Those have a batch of one, few steps, and no call of fixed size that is padded: an engine may return anything there,
    and a plain test runner compares everything.
    """
    options = manifest.options
    steps = list(verify.steps(_entry(entry)))
    calls = [call for step in steps for call in verify.cuts(asdict(options), step)]
    padded = any(stop - start != size for _, start, stop, size in calls)
    cut = manifest.model.has_states and len(calls) > len(entry.chunks)  # states are known at the ends of steps
    wide = any(len(step.rows) > 1 for step in steps) or (options.batch or 1) > 1
    many = len(entry.chunks) > (_MOST_MOVED if entry.moves else _MOST_STEPS)
    if cut or wide or many or padded or (entry.moves and options.layout == "static"):
        return 0
    size = 0
    for _, before, total, tokens in calls:
        size += 4 * tokens * manifest.model.vocab_size + 8 * (2 * tokens + (options.max_len or total))
        for slot in manifest.model.slots:
            rows = options.held_rows(slot, before) + options.held_rows(slot, total)
            size += slot.row_bytes(options.dtype) * rows + 2 * slot.state_bytes(options.dtype)
    return size


def _write_case(folder: Path, manifest: Manifest, entry: CaseEntry, vectors: Vectors) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    for call, inputs, outputs in _calls(manifest, entry, vectors):
        place = folder / "cases" / entry.name / f"test_data_set_{len(steps)}"
        place.mkdir(parents=True)
        graph = _graph(manifest, call)
        written = {
            f"{kind}s": [_write(place / f"{kind}_{i}.pb", port.name, values[port.name]) for i, port in enumerate(ports)]
            for kind, ports, values in (("input", graph.spec.inputs, inputs), ("output", graph.spec.outputs, outputs))
        }
        step = {"folder": place.relative_to(folder).as_posix(), "graph": graph.file.path, **written}
        steps.append({**step, **(_continued(call.step) if entry.moves else {})})
    return {"name": entry.name, "why": entry.why, "steps": steps}


def _continued(step: verify.Step) -> dict[str, Any]:
    """Where a step of one row continues: the slots that it covers, and the step whose caches it takes."""
    continues = step.past[0][0] if step.past else step.index - 1
    return {"start": step.start, "stop": step.stop, "continues": continues if step.start else None}


def _calls(
    manifest: Manifest, entry: CaseEntry, vectors: Vectors
) -> Iterator[tuple[verify.Call, dict[str, Array], dict[str, Array]]]:
    """Inputs and outputs of every call, caches handed on from the reference's own."""
    case, options, slots = vectors.case, manifest.options, manifest.model.slots
    data = {"input_ids": case.tokens, "attention_mask": case.mask, "position_ids": case.positions, **vectors.arrays}
    data["logits"] = np.asarray(vectors.arrays["logits"]).astype(np.float32)  # rebuilt ones are float64
    document = {"options": asdict(options), "model": {"slots": [asdict(slot) for slot in slots]}}
    past: dict[str, Array] = {}
    for step, own in zip(verify.steps(_entry(entry)), case.steps(), strict=True):
        group = verify.picked(data, step, range(len(step.rows)))
        if case.moves:
            past = expected_pasts(vectors.arrays, case, own, slots, options) if step.start else {}
        for call in verify.calls(document["options"], step, group):
            ports = _graph(manifest, call).spec
            inputs: dict[str, Array] = {**call.feeds, **past}
            for port in ports.inputs:
                if not past and port.name.startswith("past_key_values."):
                    inputs[port.name] = verify.empty_cache(list(port.shape), port.dtype, len(step.rows))
            if manifest.host_inputs:
                rows = {s.window: options.kept_rows(s, call.start, own.reached) + call.stop - call.start for s in slots}
                inputs.update(compute(manifest.host_inputs, inputs, rows, options.dtype))
            shapes = {port.name: port.shape for port in ports.outputs}
            outputs: dict[str, Array] = {}
            for name, values, _, places, _ in verify.expectations(document, group, call):
                outputs[name] = values if places is None or name == "logits" else _placed(shapes[name], places, values)
            yield call, inputs, outputs
            past = {into: outputs[out] for out, into in _chain(manifest).items()}


def _entry(entry: CaseEntry) -> dict[str, Any]:
    """What verify.py reads of a case in the manifest."""
    moves = [asdict(move) for move in entry.moves]
    return {"chunks": entry.chunks, "first": entry.first, "batch": entry.batch, "moves": moves}


def _graph(manifest: Manifest, call: verify.Call) -> GraphEntry:
    return manifest.graphs[DECODE if call.graph == DECODE else PREFILL]


def _placed(shape: tuple[int | str, ...], rows: Array, values: Array) -> Array:
    """A buffer of the static layout with values in these rows, and zeros in those that hold nothing."""
    buffer = np.zeros([int(size) for size in shape], values.dtype)
    buffer[:, :, rows] = values
    return buffer


def _write(path: Path, name: str, value: Array) -> Mapping[str, Any]:
    from onnx import numpy_helper

    data = numpy_helper.from_array(np.ascontiguousarray(value), name).SerializeToString(deterministic=True)
    path.write_bytes(data)
    return {
        "file": path.name,
        "name": name,
        "dtype": value.dtype.name,
        "shape": list(value.shape),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
