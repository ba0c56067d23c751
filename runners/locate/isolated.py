"""A graph cut at some of its values and fed from outside: what each segment makes in float64, and float32's error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.dtypes import numpy_dtype
from kvparity.exporter.contract.spec import GraphKind
from kvparity.runners.engines.exact import open_model, widen
from kvparity.runners.locate.graphs import cut, evaluate, expose, inline_weights, load_graph, probes_of
from kvparity.runners.locate.probe_diff import Array, Call, ProbeDiff, diff_probe

__all__ = ["Isolated", "cut_graph", "float64_values", "isolated", "narrow_feeds"]

_BUDGET = 16.0  # times float32's own error in the same segment; a fault is orders of magnitude over this
_EPSILON = 2.0**-21  # of the largest value: what any float32 segment may cost


@dataclass(frozen=True, eq=False)
class Isolated:
    """What the segments of a cut graph make of what they were fed.

    Attributes:
        expected: In float64, by value name.
        noise: The same in the graph's own dtype on onnx's evaluator; empty where that lacks an operator.
    """

    expected: Mapping[str, Array]
    noise: Mapping[str, Array]

    def judge(self, call: Call, probe: str, value: str, actual: Array) -> ProbeDiff | None:
        """Whether an actual value is further from float64 than the rounding of its segment explains."""
        want, own = self.expected[value], self.noise.get(value)
        largest = max(1e-30, float(np.abs(np.where(want < -1e8, 0.0, want)).max(initial=0.0)))
        with np.errstate(invalid="ignore", over="ignore"):
            rounding = 0.0 if own is None or own.shape != want.shape else float(np.abs(own - want).max(initial=0.0))
        limit = _BUDGET * max(rounding if np.isfinite(rounding) else 0.0, _EPSILON * largest)
        return diff_probe(call, probe, value, want, actual, relative=limit / max(1.0, largest))


def isolated(
    bundle: Bundle, kind: GraphKind, cuts: Iterable[str], inputs: Mapping[str, Array], also: Iterable[str] = ()
) -> Isolated:
    """Cut a graph and evaluate it.

    Args:
        bundle: The bundle.
        kind: Which graph.
        cuts: Values whose readers read ``<name>/given`` instead.
        inputs: The call's inputs and the given values, in the graph's dtype.
        also: More values to return.
    """
    cuts, also = tuple(cuts), tuple(also)
    wide, narrow = cut_graph(bundle, kind, cuts, also), cut_graph(bundle, kind, cuts, also)
    widen(wide)
    return Isolated(evaluate(wide, inputs, f"{kind}.onnx, isolated"), _in_own_dtype(narrow, inputs))


def cut_graph(bundle: Bundle, kind: GraphKind, cuts: Iterable[str], also: Iterable[str] = ()) -> Any:
    """A graph in the bundle's dtype, cut at the named values; ``also`` become outputs as well."""
    model = load_graph(bundle, kind, wide=False)
    expose(model, also)
    cut(model, dict.fromkeys(cuts, numpy_dtype(bundle.options.dtype)))
    return model


def narrow_feeds(bundle: Bundle, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Inputs of a call in the graph's dtype."""
    dtype = numpy_dtype(bundle.options.dtype)
    return {name: array.astype(dtype) if array.dtype.kind not in "iub" else array for name, array in feeds.items()}


def float64_values(
    bundle: Bundle, call: Call, feeds: Mapping[str, Array], *, every: bool
) -> tuple[dict[str, Array], Mapping[str, str]]:
    """The graph's probes in float64 by value name, ``every`` other value with them, and which value each probe is."""
    model = load_graph(bundle, call.step.graph)
    probes = probes_of(model)
    inner = [str(value.name) for node in model.graph for value in node.outputs if value.name]
    expose(model, inner if every else probes.values())
    return evaluate(model, feeds, f"{call.step.graph}.onnx"), probes


def _in_own_dtype(model: Any, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
    """The cut graph in its own dtype on onnx's evaluator; nothing where that lacks an operator."""
    inline_weights(model)
    try:
        names, run = open_model(model, "onnx", "the graph in its own dtype")
        with np.errstate(all="ignore"):  # its Sigmoid computes both branches of a where, and one of them overflows
            results = run(feeds)
    except Exception:  # an operator of another domain; the floor alone is used
        return {}
    return dict(zip(names, results, strict=True))
