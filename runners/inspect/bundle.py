"""What is in a bundle: the model, its cache slots, its graphs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.features import unproven
from kvparity.exporter.contract.graph_file import load_graph_file
from kvparity.exporter.contract.spec import GraphKind

__all__ = ["cache_bytes", "inspection", "judged_lengths", "operator_counts", "slot_row"]


def inspection(bundle: Bundle) -> dict[str, Any]:
    """The manifest's facts and the operator counts as plain data; the output of ``inspect --json``."""
    return {
        "model": asdict(bundle.model),
        "options": asdict(bundle.options),
        "slots": [slot_row(bundle, index) for index in range(len(bundle.model.slots))],
        "graphs": {
            kind: {
                "opset": graph.opset,
                "ir_version": graph.ir_version,
                "bytes": graph.file.bytes,
                "ports": asdict(graph.spec),
                "operators": dict(sorted(operator_counts(bundle, kind).items())),
            }
            for kind, graph in bundle.manifest.graphs.items()
        },
        "quantization": None if bundle.manifest.quantization is None else asdict(bundle.manifest.quantization),
        "cases": [case.name for case in bundle.manifest.cases],
        "noise": bundle.manifest.noise,
        "not_proven": unproven(bundle.model, judged_lengths(bundle)),
    }


def judged_lengths(bundle: Bundle) -> list[int]:
    """Tokens of each case that can be judged."""
    return [case.total for case in bundle.manifest.cases if bundle.manifest.is_recorded(case)]


def operator_counts(bundle: Bundle, kind: GraphKind) -> dict[str, int]:
    """How often each operator occurs in a graph; operators outside the default domain with their domain."""
    counts: dict[str, int] = {}
    for node in load_graph_file(bundle.graph_path(kind)).graph:
        name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        counts[name] = counts.get(name, 0) + 1
    return counts


def cache_bytes(bundle: Bundle, tokens: int) -> int:
    """Bytes of all caches of one row after ``tokens`` tokens."""
    options = bundle.options
    return sum(
        options.held_rows(slot, tokens) * slot.row_bytes(options.dtype) + slot.state_bytes(options.dtype)
        for slot in bundle.model.slots
    )


def slot_row(bundle: Bundle, index: int) -> dict[str, Any]:
    """One cache slot, with its bytes per token and the most that it takes."""
    slot = bundle.model.slots[index]
    per_token, states = slot.row_bytes(bundle.options.dtype), slot.state_bytes(bundle.options.dtype)
    most = bundle.options.held_rows(slot, bundle.model.max_position) if slot.kv_heads else 0
    sizes = {"bytes_per_token": per_token, "most_rows": most, "state_bytes": states}
    return {**asdict(slot), **sizes, "most_bytes": most * per_token + states}
