"""Golden vectors for every language: calls as ONNX ``test_data_set_N``, a manifest of how they chain, and a replay.

ONNX's own test runners, and those of most engines, read ``test_data_set_N/{input,output}_I.pb``: one TensorProto per
port, in graph order, with its name set. A few short cases are enough for them; all cases are in the ``.npz`` files.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from exporter.bundle import CaseEntry, FileEntry, Manifest, file_entry
from exporter.cases import Case, Step
from exporter.host_inputs import compute
from exporter.spec import DECODE, GraphSpec, past_name, present_name
from exporter.vectors import Vectors, expected_outputs

__all__ = ["write_golden"]

Array = npt.NDArray[np.generic]
SCHEMA_VERSION = 1
MEGABYTES = 16
_MOST_CALLS = 4
_SHARE = 250_000  # a case takes at most a quarter of the bytes
_TOL = 1e-4
_NOISE_FACTOR = 8  # for half types: two engines that each round as well as the reference differ by less

README = """# Replaying these vectors

1. `NAME.npz` holds a case: `input_ids`, `attention_mask`, `position_ids`, `chunks`, `logits`, `cache.N.key/value`.
2. Call `i` carries the tokens from `start = sum(chunks[:i])` to `stop = start + chunks[i]`.
3. Call 0 runs the graph named in `first`, every later one `decode.onnx`.
4. Feed `input_ids[:, start:stop]`, `position_ids[:, start:stop]`, `attention_mask[:, :stop]`.
5. A decode call also takes `past_key_values.N.key/value`: the `present.N.key/value` of the call before, or no rows.
6. Expect `logits[:, start:stop]`; in a slot with window W the last `min(stop, W - 1)` rows up to `stop`, else all rows.
7. Leave out slots whose mask is 0. Every other value must be finite and within the tolerance of `golden.json`.
8. `NAME/test_data_set_I/{input,output}_J.pb` are some of the calls as ONNX TensorProtos, in graph order, names set.
9. `golden.json` lists those files with sha256, and which output becomes which input of the next call (`chain`).
10. `python ../verify.py` does all of this with numpy and onnxruntime: exit 0 match, 1 mismatch, 2 could not tell.
"""


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
        The files to list in the manifest (``golden.json`` vouches for the ``.pb`` files); none where no case was
        recorded, or the layout is not dynamic.
    """
    recorded = [entry for entry in manifest.cases if entry.file is not None]
    if not recorded or manifest.options.layout != "dynamic":
        return ()
    left = megabytes * 1_000_000
    cases: list[dict[str, Any]] = []
    for entry in recorded:
        size = _size(manifest, entry)
        if entry.batch == 1 and len(entry.chunks) <= _MOST_CALLS and size <= min(left, megabytes * _SHARE):
            left -= size
            cases.append(_write_case(folder, manifest, entry, vectors(entry.name)))
    document = {
        "schema_version": SCHEMA_VERSION,
        "tolerance": {manifest.options.dtype: _tolerance(manifest)},
        "chain": _chain(manifest),
        "cases": cases,
    }
    (folder / "cases" / "golden.json").write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", "utf-8")
    (folder / "cases" / "README.md").write_text(README, "utf-8")
    shutil.copyfile(Path(__file__).with_name("verify.py"), folder / "verify.py")
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
    """Bytes of a case's tensors, before it is written."""
    item = 4 if manifest.options.dtype == "float32" else 2
    size, total = 0, 0
    for tokens in entry.chunks:
        before, total = total, total + tokens
        size += 4 * tokens * manifest.model.vocab_size + 8 * (2 * tokens + total)
        for slot in manifest.model.slots:
            rows = slot.kept_rows(before, manifest.options.bounded) + slot.kept_rows(total, manifest.options.bounded)
            size += rows * slot.kv_heads * (slot.head_dim + slot.value_head_dim) * item
    return size * entry.batch


def _write_case(folder: Path, manifest: Manifest, entry: CaseEntry, vectors: Vectors) -> dict[str, Any]:
    steps = []
    for step, inputs, outputs in _calls(manifest, vectors):
        place = folder / "cases" / entry.name / f"test_data_set_{step.index}"
        place.mkdir(parents=True)
        graph = manifest.graphs[step.graph]
        steps.append(
            {
                "folder": place.relative_to(folder).as_posix(),
                "graph": graph.file.path,
                "inputs": [
                    _write(place / f"input_{i}.pb", port.name, inputs[port.name])
                    for i, port in enumerate(graph.spec.inputs)
                ],
                "outputs": [
                    _write(place / f"output_{i}.pb", port.name, outputs[port.name])
                    for i, port in enumerate(graph.spec.outputs)
                ],
            }
        )
    return {"name": entry.name, "why": entry.why, "steps": steps}


def _calls(manifest: Manifest, vectors: Vectors) -> Iterator[tuple[Step, dict[str, Array], dict[str, Array]]]:
    """Inputs and outputs of every call, caches handed on from the reference's own."""
    case, options = vectors.case, manifest.options
    past = _no_rows(manifest.graphs[DECODE].spec, case)
    for step in case.steps():
        inputs: dict[str, Array] = {**case.inputs(step), **(past if step.graph == DECODE else {})}
        if manifest.host_inputs:
            rows = {s.window: s.kept_rows(step.start, options.bounded) + step.tokens for s in manifest.model.slots}
            inputs.update(compute(manifest.host_inputs, inputs, rows, options.dtype))
        last = options.logits == "last"
        outputs = expected_outputs(vectors.arrays, step, manifest.model.slots, bounded=options.bounded, last=last)
        yield step, inputs, outputs
        past = {into: outputs[out] for out, into in _chain(manifest).items()}


def _no_rows(spec: GraphSpec, case: Case) -> dict[str, Array]:
    """The first past of a decode graph: (batch, kv_heads, 0, head_dim) per port."""
    import ml_dtypes

    half = {"bfloat16": np.dtype(ml_dtypes.bfloat16)}
    return {
        port.name: np.zeros((case.batch, int(port.shape[1]), 0, int(port.shape[3])), half.get(port.dtype, port.dtype))
        for port in spec.inputs
        if port.name.startswith("past_key_values.")
    }


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
