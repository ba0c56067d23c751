"""The report as node data for AI Edge Model Explorer: the error of every output as a colour on the graph.

``pip install ai-edge-model-explorer model-explorer-onnx``, then open a graph and load this file as node data. The ONNX
adapter names a graph's output ``[io]<name>`` and every other node as ONNX does; both graphs of a bundle are called
``main_graph`` there, so one file serves both.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.graph_file import load_graph_file
from kvparity.runners.diff.records import ReportRecord, TensorRecord
from kvparity.runners.report.report import write_text

__all__ = ["model_explorer_report", "save_model_explorer"]

_LARGEST = 1e38  # stands for NaN and Inf, which JSON has not
_COLOURS = ("#e2edf6", "#accfe9", "#4a8fc4", "#f0a23b", "#b3202c")
_STEPS = (1e-2, 1e-1, 1.0, 10.0)


def model_explorer_report(report: ReportRecord, bundle: Bundle) -> str:
    """Node data of the first question: the largest difference of every output over runners and cases.

    Args:
        report: What to show.
        bundle: For the names of graphs and nodes.
    """
    question = report.questions[0]
    worst = _worst([record for record in report.tensors if record.question == question.question])
    limit = max((limit for case in report.cases for limit in case.limits.values()), default=1e-4)
    graphs: dict[str, dict[str, Any]] = {}
    for kind in bundle.manifest.graphs:
        graph = load_graph_file(bundle.graph_path(kind)).graph
        data = graphs.setdefault(graph.name or "graph", {"results": {}, "thresholds": _thresholds(limit)})
        for output in graph.outputs:
            producer = output.producer()
            if output.name in worst:
                value = {"value": worst[output.name]}
                data["results"][f"[io]{output.name}"] = value
                if producer is not None and producer.name:
                    data["results"][producer.name] = value
    return json.dumps(graphs, indent=1, sort_keys=True) + "\n"


def save_model_explorer(report: ReportRecord, bundle: Bundle, path: Path) -> None:
    """Write the node data.

    Raises:
        TraceError: The file cannot be written.
    """
    write_text(path, model_explorer_report(report, bundle))


def _worst(records: Sequence[TensorRecord]) -> dict[str, float]:
    worst: dict[str, float] = {}
    for record in records:
        value = record.metrics.get("max_abs", 0.0)
        worst[record.tensor] = max(worst.get(record.tensor, 0.0), value if isinstance(value, float) else _LARGEST)
    return worst


def _thresholds(limit: float) -> list[dict[str, object]]:
    """Colours up to a hundredth, a tenth, once and ten times the limit, and beyond."""
    bounds = [*(limit * step for step in _STEPS), _LARGEST]
    return [{"value": bound, "bgColor": colour} for bound, colour in zip(bounds, _COLOURS, strict=True)]
