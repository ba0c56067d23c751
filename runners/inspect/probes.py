"""Values inside a model, call by call: what an engine's author compares with, or records to have a fault located.

They are those of the graph evaluated in float64, which is PyTorch in float64 to about 1e-12: no PyTorch is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.dtypes import numpy_dtype
from kvparity.exporter.contract.errors import BundleError
from kvparity.runners.base import Array
from kvparity.runners.engines.trace_file import TraceWriter
from kvparity.runners.locate.isolated import float64_values
from kvparity.runners.locate.probe_diff import Call
from kvparity.runners.locate.search import make_call
from kvparity.runners.reference.source import select_cases

__all__ = ["Inside", "axes_of", "inside", "probe_rows", "save_probes"]

_INPUTS = ("input_ids", "attention_mask", "position_ids")
_HEADED = ("batch", "heads", "sequence", "head_dim")
_AXES = {
    "query": _HEADED,
    "key": ("batch", "kv_heads", "rows", "head_dim"),
    "value": ("batch", "kv_heads", "rows", "head_dim"),
    "context": ("batch", "sequence", "heads", "head_dim"),
    "q_norm": ("batch", "sequence", "heads", "head_dim"),
    "k_norm": ("batch", "sequence", "kv_heads", "head_dim"),
    "v_norm": ("batch", "sequence", "kv_heads", "head_dim"),
}


@dataclass(frozen=True, eq=False)
class Inside:
    """One call of a case from inside.

    Attributes:
        call: The call.
        outputs: Outputs of the graph by name, float64.
        probes: Values at module borders by name in execution order, float64; an output that is one is here too.
    """

    call: Call
    outputs: Mapping[str, Array]
    probes: Mapping[str, Array]


def inside(bundle: Bundle, cases: tuple[str, ...] = (), step: int | None = None) -> Iterator[Inside]:
    """Evaluate calls of recorded cases in float64.

    Args:
        bundle: A bundle of the dynamic layout.
        cases: Names or glob patterns; the first recorded case where empty.
        step: One call of each case; all of them where None.

    Raises:
        BundleError: No such case, no recorded vectors, or no such call.
        TraceError: The bundle's layout is not the dynamic one.
    """
    recorded = [entry for entry in select_cases(bundle, cases) if bundle.manifest.is_recorded(entry)]
    if not recorded:
        raise BundleError(f"{bundle.root}: no vectors are recorded of these cases; export with --vectors all")
    for entry in recorded if cases else recorded[:1]:
        vectors = bundle.vectors(entry.name)
        steps = range(len(vectors.case.chunks))
        if step is not None and step not in steps:
            raise BundleError(f"{bundle.root}: case {entry.name} has {len(steps)} calls, so no step {step}")
        for index in steps if step is None else (step,):
            yield _evaluated(bundle, make_call(bundle, vectors, index))


def _evaluated(bundle: Bundle, call: Call) -> Inside:
    values, probes = float64_values(bundle, call, call.feeds, every=False)
    outputs = {port.name: values[port.name] for port in bundle.graph(call.step.graph).spec.outputs}
    return Inside(call, outputs, {probe: values[value] for probe, value in probes.items()})


def axes_of(probe: str, shape: Sequence[int]) -> tuple[str, ...]:
    """Names of a probe's axes, by the contract that its name stands for; numbers where it has none."""
    last = probe.rpartition(".")[2]
    named: tuple[str, ...] = _AXES.get(last, ())
    if probe.startswith("mask."):
        named = ("batch", "1", "sequence", "rows")
    elif probe == "embed_tokens_per_layer" or probe.startswith("per_layer_"):
        named = ("batch", "sequence", "layers", "channels") if len(shape) == 4 else ("batch", "sequence", "channels")
    elif len(shape) == 3:
        named = ("batch", "sequence", "channels")
    return named if len(named) == len(shape) else tuple(map(str, shape))


def save_probes(bundle: Bundle, found: Sequence[Inside], path: Path, names: Sequence[str] = ()) -> int:
    """Write calls as a trace: outputs and probes as an engine without faults would return them, in the bundle's dtype.

    Args:
        bundle: The bundle.
        found: Calls.
        path: The ``.npz`` to make.
        names: Glob patterns of probes; empty takes all.

    Returns:
        How many values were written.

    Raises:
        TraceError: The file cannot be written.
    """
    dtype, count = numpy_dtype(bundle.options.dtype), 0
    with TraceWriter(path, "the graph in float64") as writer:
        for item in found:
            probes = {name: value for name, value in _chosen(item.probes, names).items() if name not in item.outputs}
            outputs = {
                name: array.astype(np.float32 if name == "logits" else dtype) for name, array in item.outputs.items()
            }
            inputs = {name: item.call.feeds[name] for name in _INPUTS if name in item.call.feeds}
            writer.add(
                item.call.case.name,
                item.call.step,
                {**inputs, **outputs},
                {k: v.astype(dtype) for k, v in probes.items()},
            )
            count += len(outputs) + len(probes)
    return count


def probe_rows(item: Inside, names: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Name, axes, shape and range of every value; ``probes --json`` prints these rows."""
    for name, value in _chosen(item.probes, names).items():
        numbers = np.asarray(value, np.float64)
        live = numbers[numbers > -1e8] if name.startswith("mask.") else numbers
        yield {
            "case": item.call.case.name,
            "step": item.call.step.index,
            "graph": item.call.step.graph,
            "name": name,
            "axes": ", ".join(axes_of(name, value.shape)),
            "shape": list(value.shape),
            "least": float(live.min(initial=0.0)),
            "largest": float(live.max(initial=0.0)),
        }


def _chosen(probes: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
    chosen = {k: v for k, v in probes.items() if not names or any(fnmatchcase(k, pattern) for pattern in names)}
    if not chosen:
        raise BundleError(f"no value inside matches {', '.join(names)}; without --name all are listed")
    return chosen
