"""How far a bundle's values reach: against the largest number of a dtype, and how many are too small for it.

Every value is computed in float64 from the shipped graph, so that one that overflows in float16 shows its size and not
an infinity. In a half-type bundle each value is judged by the dtype that the graph gives it (norms and softmax are
float32); in a float32 bundle the values at module borders are judged by a half type, since those would be of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from kvparity.exporter.contract.bundle import Bundle, CaseEntry
from kvparity.exporter.contract.errors import BundleError
from kvparity.exporter.contract.spec import GraphKind
from kvparity.runners.base import Array, RunnerInfo
from kvparity.runners.decode.play import play
from kvparity.runners.engines.exact import open_model, widen
from kvparity.runners.locate.graphs import expose, open_graph, probes_of
from kvparity.runners.reference.source import select_cases

__all__ = ["RangeReport", "ValueRange", "measure_ranges", "ranges_data"]

SCHEMA_VERSION = 1
_MOVES = (
    "Where",
    "Slice",
    "Expand",
    "Reshape",
    "Transpose",
    "Unsqueeze",
    "Squeeze",
    "Concat",
    "Gather",
    "Split",
    "Cast",
)
_LARGEST = {"float16": 65504.0, "bfloat16": 2.0**127 * (2 - 2.0**-7), "float32": 2.0**127 * (2 - 2.0**-23)}
_NORMAL = {"float16": 2.0**-14, "bfloat16": 2.0**-126, "float32": 2.0**-126}
_SUBNORMAL = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149}
_HALF_STEP = {"float16": 16.0, "bfloat16": 2.0**119, "float32": 2.0**103}  # what rounds up from there is infinite
_BLOCKED = -3e4  # below: what a mask made of a score that nobody may look at
_MASK_PASSES = ("Add", "Cast", "Slice", "Unsqueeze", "Expand", "Reshape", "Concat", "Where", "Sub", "Identity")
_MOST_TOKENS = 512  # of the cases that are measured where none is named


@dataclass(frozen=True)
class ValueRange:
    """One value of one graph over all calls.

    Attributes:
        name: Of the probe, or of the node that makes the value.
        graph: ``prefill`` or ``decode``.
        dtype: What it is judged by.
        largest: Largest magnitude.
        case: Where that was.
        elements: Numbers seen.
        overflows: How many round to infinity.
        subnormal: How many are kept with fewer bits, being below the smallest normal number.
        lost: How many round to zero without being zero.
        zeros: How many are zero.
    """

    name: str
    graph: GraphKind
    dtype: str
    largest: float = 0.0
    case: str = ""
    elements: int = 0
    overflows: int = 0
    subnormal: int = 0
    lost: int = 0
    zeros: int = 0

    @property
    def reach(self) -> float:
        """Largest magnitude as a share of the dtype's largest number."""
        return self.largest / _LARGEST[self.dtype]

    def seen(self, array: Array, case: str) -> ValueRange:
        """With the numbers of one more call."""
        size = np.abs(array)
        largest = float(size.max(initial=0.0))
        smallest, zeros = _SUBNORMAL[self.dtype] / 2, int((size == 0).sum())
        lost = int((size <= smallest).sum()) - zeros
        return replace(
            self,
            largest=max(self.largest, largest),
            case=case if largest > self.largest else self.case,
            elements=self.elements + size.size,
            overflows=self.overflows + int((size >= _LARGEST[self.dtype] + _HALF_STEP[self.dtype]).sum()),
            subnormal=self.subnormal + int((size < _NORMAL[self.dtype]).sum()) - lost - zeros,
            lost=self.lost + lost,
            zeros=self.zeros + zeros,
        )


@dataclass(frozen=True)
class RangeReport:
    """Every value, in execution order, prefill before decode."""

    dtype: str
    cases: tuple[str, ...]
    values: tuple[ValueRange, ...]

    @property
    def overflowing(self) -> tuple[ValueRange, ...]:
        """Values of which some number rounds to infinity."""
        return tuple(value for value in self.values if value.overflows)

    def sentence(self) -> str:
        """What matters most."""
        if self.overflowing:
            first = self.overflowing[0]
            return (
                f"{len(self.overflowing)} of {len(self.values)} values overflow {first.dtype}, first {first.name} "
                f"({first.graph}): {first.largest:.4g} in case {first.case}, the largest number is "
                f"{_LARGEST[first.dtype]:.5g}"
            )
        worst = max(self.values, key=lambda value: value.reach)
        return (
            f"nothing of {len(self.values)} values overflows; closest is {worst.name} ({worst.graph}): "
            f"{worst.largest:.4g}, {worst.reach:.2g} of {worst.dtype}'s largest number"
        )


def measure_ranges(bundle: Bundle, dtype: str = "auto", patterns: Sequence[str] = ()) -> RangeReport:
    """Play cases in float64 and look at every value.

    Args:
        bundle: The bundle.
        dtype: What values are judged by; ``auto`` is the bundle's own, or float16 for float32 bundles.
        patterns: Cases, by name or glob pattern; the longest of at most 512 tokens and those of text where empty.

    Raises:
        BundleError: No case matches, or a half-type bundle is to be judged by another dtype.
    """
    own = bundle.options.dtype
    if own != "float32" and dtype not in ("auto", own):
        raise BundleError(f"{bundle.root}: is in {own}; --range {dtype} is for float32 bundles")
    judged = own if own != "float32" else "float16" if dtype == "auto" else dtype
    chosen = _chosen(bundle, tuple(patterns))
    session = _Session(bundle, judged)
    for entry in chosen:
        session.case = entry.name
        for _ in play(bundle, session, bundle.case(entry.name)):
            pass
    values = tuple(value for kind in bundle.manifest.graphs for value in session.found.get(kind, {}).values())
    return RangeReport(judged, tuple(entry.name for entry in chosen), values)


def _chosen(bundle: Bundle, patterns: tuple[str, ...]) -> list[CaseEntry]:
    entries = [entry for entry in select_cases(bundle, patterns) if bundle.manifest.is_recorded(entry) or patterns]
    if patterns:
        return entries
    short = [entry for entry in entries if entry.batch * entry.total <= _MOST_TOKENS] or entries[:1]
    if not short:
        raise BundleError(f"{bundle.root}: no case is recorded; name one with --case")
    longest = max(short, key=lambda entry: entry.total)
    return [entry for entry in short if entry is longest or entry.name.startswith("text")]


class _Session:
    """The graphs in float64 with every value as an output."""

    def __init__(self, bundle: Bundle, dtype: str) -> None:
        self._bundle, self._dtype = bundle, dtype
        self._graphs: dict[GraphKind, tuple[list[str], Any, dict[str, str], set[str]]] = {}
        self.found: dict[GraphKind, dict[str, ValueRange]] = {}
        self.case = ""
        self.info = RunnerInfo("exact", "", {"dtype": "float64"})

    def run(self, graph: GraphKind, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if graph not in self._graphs:
            self._graphs[graph] = self._open(graph)
        names, run, labels, blocked = self._graphs[graph]
        feeds = {name: a.astype(np.float64) if a.dtype.kind not in "iub" else a for name, a in inputs.items()}
        outputs = dict(zip(names, run(feeds), strict=True))
        for name, label in labels.items():
            array = np.asarray(outputs[name], np.float64).ravel()
            seen = self.found[graph][label]
            self.found[graph][label] = seen.seen(array[array > _BLOCKED] if name in blocked else array, self.case)
        return outputs

    def close(self) -> None:
        """Drop both graphs."""
        self._graphs.clear()

    def _open(self, graph: GraphKind) -> tuple[list[str], Any, dict[str, str], set[str]]:
        model = open_graph(self._bundle, graph)
        kinds = _kinds(model) if self._bundle.options.dtype != "float32" else {}
        blocked = _from_masks(model)
        widen(model)
        probes = {value: probe for probe, value in probes_of(model).items() if not probe.startswith("mask.")}
        labels = {**_inner(model, kinds), **probes} if kinds else probes
        expose(model, labels)
        self.found[graph] = {
            label: ValueRange(label, graph, kinds.get(name, self._dtype)) for name, label in labels.items()
        }
        names, run = open_model(model, "ort", f"{graph}.onnx")
        return names, run, labels, blocked


def _kinds(model: Any) -> dict[str, str]:
    """Float dtype of every value of a graph, as shape inference finds it."""
    import onnx
    import onnx_ir as ir

    proto = onnx.shape_inference.infer_shapes(ir.to_proto(model))
    kinds = {
        value.name: ir.DataType(value.type.tensor_type.elem_type).name.lower()
        for value in (*proto.graph.value_info, *proto.graph.output)
    }
    names = {"float": "float32"}
    return {name: names.get(kind, kind) for name, kind in kinds.items() if names.get(kind, kind) in _LARGEST}


def _inner(model: Any, kinds: Mapping[str, str]) -> dict[str, str]:
    """Value name to node name of every floating-point value that an operator computes; moving one makes none."""
    found: dict[str, str] = {}
    for node in model.graph:
        for place, value in enumerate(node.outputs):
            name = str(value.name)
            if value.name and name in kinds and node.op_type not in _MOVES:
                found[name] = str(node.name) if place == 0 else f"{node.name}:{place}"
    return found


def _from_masks(model: Any) -> set[str]:
    """Names of values that hold blocked scores: what is computed from masks, until the softmax."""
    start = {value for probe, value in probes_of(model).items() if probe.startswith("mask.")}
    start |= {str(value.name) for value in model.graph.inputs if str(value.name).startswith("mask.")}
    reached = set(start)
    for node in model.graph:
        if node.op_type in _MASK_PASSES and any(v is not None and v.name in reached for v in node.inputs):
            reached.update(str(value.name) for value in node.outputs)
    return reached


def ranges_data(report: RangeReport) -> dict[str, Any]:
    """The report as plain data: every value, and the names of those that overflow; ``inspect --range --json``."""
    values = [{**asdict(value), "limit": _LARGEST[value.dtype], "reach": value.reach} for value in report.values]
    return {
        "schema_version": SCHEMA_VERSION,
        "dtype": report.dtype,
        "cases": report.cases,
        "overflowing": [{"graph": value.graph, "name": value.name} for value in report.overflowing],
        "values": values,
    }
