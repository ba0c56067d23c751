"""What is in a bundle: the model, its cache slots, its graphs; for people and as data."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from rich.table import Table

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.features import coverage_lines, unproven
from kvparity.exporter.contract.graph_file import load_graph_file
from kvparity.exporter.contract.spec import GraphKind
from kvparity.runners.inspect.terminal import table_console

__all__ = ["inspect_json", "print_inspection"]

_WIDTH = 110  # of output that goes to a file or a pipe


def inspect_json(bundle: Bundle) -> str:
    """The manifest's facts and the operator counts as JSON."""
    data = {
        "model": asdict(bundle.model),
        "options": asdict(bundle.options),
        "slots": [_slot_row(bundle, index) for index in range(len(bundle.model.slots))],
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
        "not_proven": unproven(bundle.model, _totals(bundle)),
    }
    return json.dumps(data, indent=1)


def _totals(bundle: Bundle) -> list[int]:
    """Tokens of each case that can be judged."""
    return [case.total for case in bundle.manifest.cases if case.file is not None]


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


def _slot_row(bundle: Bundle, index: int) -> dict[str, Any]:
    slot = bundle.model.slots[index]
    per_token, states = slot.row_bytes(bundle.options.dtype), slot.state_bytes(bundle.options.dtype)
    most = bundle.options.held_rows(slot, bundle.model.max_position) if slot.kv_heads else 0
    sizes = {"bytes_per_token": per_token, "most_rows": most, "state_bytes": states}
    return {**asdict(slot), **sizes, "most_bytes": most * per_token + states}


def print_inspection(bundle: Bundle, shown: str) -> None:
    """Print model, slots, graphs and cases as tables."""
    console = table_console(_WIDTH)
    model, options = bundle.model, bundle.options
    console.print(f"[bold]{shown}[/bold]  {model.architecture} ({model.model_type}), {model.parameters:,} parameters")
    console.print(
        f"layers {model.pattern}, hidden {model.hidden_size}, heads {model.heads}, vocabulary {model.vocab_size:,}, "
        f"positions {model.max_position:,}"
    )
    console.print(
        f"{options.layout} layout, {options.profile} profile, {options.sliding_cache} sliding caches, {options.dtype}, "
        f"logits {options.logits}; made with " + ", ".join(f"{k} {v}" for k, v in bundle.manifest.versions.items())
    )
    if options.layout == "static":
        console.print(
            f"buffers of {options.max_len:,} rows, {options.chunk} tokens per prefill call, batch {options.batch}"
        )
    if bundle.manifest.quantization is not None:
        size = sum(entry.bytes for entry in bundle.manifest.weights)
        for line in bundle.manifest.quantization.lines(size):
            console.print(line, markup=False)
    proves, missing = coverage_lines(model, _totals(bundle))
    console.print(proves)
    console.print(f"[dim]{missing}[/dim]")
    console.print(_slot_table(bundle))
    for tokens in sorted({256, model.window or 256, min(1000, model.max_position)}):
        console.print(f"cache of one row after {tokens:,} tokens: {cache_bytes(bundle, tokens) / 1024:,.0f} KiB")
    console.print(_graph_table(bundle))
    for kind in bundle.manifest.graphs:
        counts = sorted(operator_counts(bundle, kind).items(), key=lambda item: (-item[1], item[0]))
        console.print(f"{kind} operators: " + ", ".join(f"{name} {count}" for name, count in counts))
    console.print(_port_table(bundle))
    for item in bundle.manifest.host_inputs:
        console.print(f"the host computes {item.name}: {item.formula}", markup=False)
    recorded = sum(case.file is not None for case in bundle.manifest.cases)
    console.print(f"{len(bundle.manifest.cases)} cases, {recorded} recorded: ", end="")
    console.print(", ".join(case.name for case in bundle.manifest.cases))


def _slot_table(bundle: Bundle) -> Table:
    table = Table(title="cache slots", title_justify="left")
    numbers = ("bytes/token", "most rows")
    for name in ("slot", "layer", "kind", "window", "kv heads", "head dim", *numbers, "states", "read by"):
        table.add_column(name, justify="left" if name in ("kind", "states", "read by") else "right")
    for index in range(len(bundle.model.slots)):
        row = _slot_row(bundle, index)
        dims = str(row["head_dim"])
        if row["value_head_dim"] != row["head_dim"]:
            dims += f"/{row['value_head_dim']}"
        table.add_row(
            *(str(row["slot"]), str(row["layer"]), row["kind"], str(row["window"] or "–"), str(row["kv_heads"]), dims),
            *(f"{row['bytes_per_token']:,}", f"{row['most_rows']:,}"),
            ", ".join(f"{state['part']} {'×'.join(map(str, state['shape']))}" for state in row["states"]) or "–",
            ", ".join(str(layer) for layer in (row["layer"], *row["shared_by"])),
        )
    return table


def _graph_table(bundle: Bundle) -> Table:
    table = Table(title="graphs", title_justify="left")
    for name in ("graph", "opset", "IR", "nodes", "bytes", "inputs", "outputs", "needs"):
        table.add_column(name)
    for kind, graph in bundle.manifest.graphs.items():
        opsets = ", ".join(f"{domain or 'ai.onnx'} {number}" for domain, number in graph.opset.items())
        nodes = sum(operator_counts(bundle, kind).values())
        table.add_row(
            *(kind, opsets, str(graph.ir_version), f"{nodes:,}", f"{graph.file.bytes:,}"),
            *(str(len(graph.spec.inputs)), str(len(graph.spec.outputs)), graph.needs or "–"),
        )
    return table


def _port_table(bundle: Bundle) -> Table:
    table = Table(title="ports of the decode graph", title_justify="left")
    for name in ("direction", "name", "dtype", "shape"):
        table.add_column(name)
    graph = bundle.manifest.graphs.get("decode") or next(iter(bundle.manifest.graphs.values()))
    for direction, ports in (("input", graph.spec.inputs), ("output", graph.spec.outputs)):
        for port in ports:
            table.add_row(direction, port.name, port.dtype, f"({', '.join(map(str, port.shape))})")
    return table
