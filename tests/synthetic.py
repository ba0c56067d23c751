"""A two-layer decoder in a few lines of numpy and a bundle of it, so that the referee is tested without any engine.

It has what matters to a cache: one sliding and one full slot of different sizes, keys that depend on token and
position, and logits that depend on every visible row, so that a wrong row anywhere changes them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kvparity.exporter.contract.bundle import (
    SCHEMA_VERSION,
    Bundle,
    GraphEntry,
    Manifest,
    file_entry,
    unrecorded,
    write_manifest,
)
from kvparity.exporter.contract.cases import Case
from kvparity.exporter.contract.schedule import default_cases
from kvparity.exporter.contract.spec import (
    DECODE,
    PREFILL,
    ExportOptions,
    GraphSpec,
    LayerSpec,
    ModelSpec,
    Part,
    SlotSpec,
    past_name,
    present_name,
)
from kvparity.exporter.contract.vectors import Recorded, Vectors, cut, deltas_of
from kvparity.runners.base import RunnerInfo
from kvparity.runners.reference.record import record_cases, reference_arrays

WINDOW = 6
MODEL = ModelSpec(
    model_type="synthetic",
    architecture="SyntheticForCausalLM",
    vocab_size=23,
    hidden_size=8,
    heads=2,
    layers=(LayerSpec(0, "sliding", WINDOW, 0), LayerSpec(1, "full", None, 1)),
    slots=(SlotSpec(0, 0, "sliding", WINDOW, 1, 4, 4), SlotSpec(1, 1, "full", None, 2, 3, 2)),
    max_position=64,
    parameters=1000,
    dtype="float32",
    tied_embeddings=True,
    bos_token_id=0,
    eos_token_ids=(1,),
    pad_token_id=2,
)
Edit = Callable[[str, dict[str, Any]], dict[str, Any]]


class Decoder:
    """A session: ``dtype`` computes in it, ``scale`` multiplies the last layer's values (1 + a rounding error, say).

    ``edit`` takes the graph's name and the outputs of each call and returns what the engine gives instead.
    """

    def __init__(
        self,
        dtype: str = "float32",
        *,
        model: ModelSpec = MODEL,
        options: ExportOptions | None = None,
        edit: Edit | None = None,
        window_shift: int = 0,
        scale: float = 1.0,
        crash_on_call: int | None = None,
    ) -> None:
        self.dtype, self.model, self.options = np.dtype(dtype), model, options or ExportOptions()
        self.edit, self.window_shift, self.scale, self.crash_on_call = edit, window_shift, scale, crash_on_call
        self.calls = 0
        self.closed = False
        self.info = RunnerInfo("synthetic", "1.0", {"dtype": dtype})
        random = np.random.default_rng(5)
        self._embed = random.normal(size=(model.vocab_size, model.hidden_size))
        self._project = {
            (slot.slot, part): random.normal(size=(model.hidden_size, slot.kv_heads, slot.dim(part))) / 2
            for slot, part in model.cache_names()
        }
        width = sum(slot.kv_heads * slot.value_head_dim for slot in model.slots)
        self._head = random.normal(size=(width, model.vocab_size))

    def run(self, graph: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        self.calls += 1
        if self.calls == self.crash_on_call:
            raise RuntimeError("segmentation fault\nin a second line")
        ids, mask, positions = (inputs[name] for name in ("input_ids", "attention_mask", "position_ids"))
        hidden = np.tanh(
            self._embed[ids] + 0.3 * np.sin(positions[..., None] * np.arange(1, self.model.hidden_size + 1))
        )
        hidden = hidden.astype(self.dtype)
        contexts, outputs = [], {}
        for slot in self.model.slots:
            rows = {part: self._rows(slot, part, hidden, inputs, graph) for part in ("key", "value")}
            contexts.append(self._context(slot, rows, mask, ids.shape[1]))
            kept = self.options.kept_rows(slot, mask.shape[1])
            for part, array in rows.items():
                array = array.astype(self.dtype)
                outputs[present_name(slot.slot, part)] = array[:, :, max(array.shape[2] - kept, 0) :]
        with np.errstate(invalid="ignore"):  # a test may have put an Inf into the past
            logits = (np.concatenate(contexts, axis=-1) * self.scale).astype(self.dtype) @ self._head.astype(self.dtype)
        if self.options.logits == "last":
            logits = logits[:, -1:]
        outputs = {"logits": logits.astype(self.dtype), **outputs}
        return self.edit(graph, outputs) if self.edit else outputs

    def _rows(self, slot: SlotSpec, part: Part, hidden: Any, inputs: Mapping[str, Any], graph: str) -> Any:
        fresh = np.einsum("bsh,hkd->bksd", hidden, self._project[slot.slot, part].astype(self.dtype))
        past = inputs[past_name(slot.slot, part)].astype(self.dtype) if graph == DECODE else fresh[:, :, :0]
        return np.concatenate([past, fresh], axis=2)

    def _context(self, slot: SlotSpec, rows: Mapping[str, Any], mask: Any, sequence: int) -> Any:
        """(batch, sequence, kv_heads * value_head_dim): softmax over visible rows of a fixed query."""
        total, count = mask.shape[1], rows["key"].shape[2]
        query = np.arange(total - sequence, total)[:, None]
        key = np.arange(total - count, total)[None, :]
        visible = key <= query
        if slot.window is not None:
            visible &= key > query - slot.window - self.window_shift
        seen = visible[None] & (mask[:, None, total - count :] == 1)
        scores = rows["key"].sum(axis=-1)[:, :, None, :]
        scores = np.where(seen[:, None], scores, self.dtype.type(-1e9))
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights = weights / weights.sum(axis=-1, keepdims=True)
        context = np.einsum("bkqr,bkrd->bqkd", weights, rows["value"])
        return context.reshape(*context.shape[:2], -1)

    def close(self) -> None:
        self.closed = True


def reference(dtype: str, model: ModelSpec = MODEL) -> Decoder:
    """The reference: whole caches, in a dtype given by name."""
    return Decoder(dtype, model=model, options=ExportOptions(sliding_cache="full"))


def vectors_of(case: Case, *, float64: bool = True) -> Vectors:
    """Reference vectors as an export records them, cut from a sequence per row."""
    recorded = []
    for row in range(case.batch):
        tokens = case.row(row)
        alone = Case(case.name, tokens[None], (len(tokens),), (0,))
        single = {key: array[0] for key, array in reference_arrays(reference("float32"), MODEL, alone).items()}
        double = {key: array[0] for key, array in reference_arrays(reference("float64"), MODEL, alone).items()}
        recorded.append(Recorded(tokens, single, deltas_of(double, single, coarse=False) if float64 else {}))
    return cut(case, recorded, None)


def make_bundle(
    root: Path,
    *,
    options: ExportOptions | None = None,
    cases: tuple[Case, ...] | None = None,
    recorded: bool = True,
    float64: bool = True,
) -> Bundle:
    """A bundle folder with empty graphs and real reference vectors."""
    root.mkdir(parents=True, exist_ok=True)
    graphs = {}
    for kind in (PREFILL, DECODE):
        (root / f"{kind}.onnx").write_bytes(kind.encode())
        entry = file_entry(root, root / f"{kind}.onnx")
        graphs[kind] = GraphEntry(entry, GraphSpec(kind, (), ()), {"": 18}, 10)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        model=MODEL,
        source="synthetic",
        revision=None,
        options=options or ExportOptions(),
        weights=(),
        graphs=graphs,
        versions={"torch": "0"},
    )
    cases = default_cases(MODEL, limit=40) if cases is None else cases
    if recorded:
        made = record_cases(Bundle(root, manifest), cases, float64=float64, opener=reference)
    else:
        made = unrecorded(root, cases)
    manifest = replace(manifest, cases=made.cases, sequences=made.sequences, noise=made.noise)
    write_manifest(root, manifest)
    return Bundle.open(root)


def flip_exponent_bit(weights: Path, tensor: str) -> None:
    """Change one bit of one value of a safetensors file, enough to be seen in every output."""
    data = bytearray(weights.read_bytes())
    header = int.from_bytes(data[:8], "little")
    begin = json.loads(data[8 : 8 + header])[tensor]["data_offsets"][0]
    data[8 + header + begin + 3] ^= 0x01
    weights.write_bytes(data)
