"""What ``inspect``, ``probes`` and ``list`` print: tables; as wide as the terminal, or a fixed width elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.features import coverage_lines
from kvparity.runners.inspect.bundle import cache_bytes, judged_lengths, operator_counts, slot_row
from kvparity.runners.inspect.probes import Inside, probe_rows
from kvparity.runners.inspect.ranges import RangeReport, ValueRange, ranges_data

__all__ = ["print_inspection", "print_probes", "print_ranges"]

_WIDTH = 110  # of output that goes to a file or a pipe
_MOST_RANGES = 25


def _console() -> Console:
    terminal = Console(highlight=False)
    return terminal if terminal.is_terminal else Console(highlight=False, width=_WIDTH)


def print_inspection(bundle: Bundle, shown: str) -> None:
    """Print model, slots, graphs and cases as tables."""
    console = _console()
    model, options = bundle.model, bundle.options
    console.print(f"[bold]{shown}[/bold]  {model.architecture} ({model.model_type}), {model.parameters:,} parameters")
    console.print(
        f"layers {model.pattern}, hidden {model.hidden_size}, heads {model.heads}, vocabulary {model.vocab_size:,}, "
        f"positions {model.max_position:,}"
    )
    console.print(
        f"{options.layout} layout, {options.profile} profile, {options.sliding_cache} sliding caches, "
        f"rewind {options.rewind}, {options.dtype}, "
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
    proves, missing = coverage_lines(model, judged_lengths(bundle))
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
    console.print(bundle.manifest.recorded_line(), markup=False)
    if line := bundle.manifest.near_tie_line():
        console.print(line, markup=False)
    console.print("cases: " + ", ".join(case.name for case in bundle.manifest.cases))


def _slot_table(bundle: Bundle) -> Table:
    table = Table(title="cache slots", title_justify="left")
    numbers = ("bytes/token", "most rows")
    for name in ("slot", "layer", "kind", "window", "kv heads", "head dim", *numbers, "states", "read by"):
        table.add_column(name, justify="left" if name in ("kind", "states", "read by") else "right")
    for index in range(len(bundle.model.slots)):
        row = slot_row(bundle, index)
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


def print_probes(found: Sequence[Inside], names: Sequence[str] = (), *, as_json: bool) -> None:
    """Names, axes, shapes and ranges: tables, one per call, or JSON."""
    if as_json:
        print(json.dumps([row for item in found for row in probe_rows(item, names)], indent=1))
        return
    console = _console()
    for item in found:
        call = item.call
        table = Table(title=f"case {call.case.name}, step {call.step.index} ({call.step.graph})", title_justify="left")
        for heading in ("value", "axes", "shape", "least", "largest"):
            table.add_column(heading, overflow="fold")
        for row in probe_rows(item, names):
            shape = ", ".join(map(str, row["shape"]))
            table.add_row(str(row["name"]), str(row["axes"]), shape, f"{row['least']:.6g}", f"{row['largest']:.6g}")
        console.print(table)


def print_ranges(report: RangeReport, shown: str, *, as_json: bool) -> None:
    """What reaches furthest, layers of a kind together; or every value as JSON."""
    if as_json:
        print(json.dumps(ranges_data(report), indent=1))
        return
    console = _console()
    console.print(f"[bold]{shown}[/bold]  against {report.dtype}, cases {', '.join(report.cases)}")
    console.print(report.sentence(), markup=False)
    table = Table(title="reach of values, furthest first", title_justify="left")
    for name in ("value", "at", "dtype", "max |x|", "of largest", "overflow", "subnormal", "lost", "zero"):
        table.add_column(name, justify="left" if name in ("value", "at", "dtype") else "right", overflow="fold")
    groups = _grouped(report.values)
    for name, members in groups[:_MOST_RANGES]:
        worst = max(members, key=lambda value: value.reach)
        count = sum(value.elements for value in members) or 1
        shares = [sum(getattr(v, key) for v in members) / count for key in ("overflows", "subnormal", "lost", "zeros")]
        layer = re.search(r"layers\.(\d+)", worst.name)
        where = f"{worst.graph}{f', layer {layer[1]}' if layer and '*' in name else ''}"
        style = "red" if any(value.overflows for value in members) else ""
        cells = [f"{share:.1%}" if share >= 0.0005 else f"{share:.0e}" if share else "–" for share in shares]
        table.add_row(name, where, worst.dtype, f"{worst.largest:.3g}", f"{worst.reach:.2g}", *cells, style=style)
    console.print(table)
    if len(groups) > _MOST_RANGES:
        console.print(f"{len(groups) - _MOST_RANGES} more kinds of values reach less far; --json has every value")


def _grouped(values: Sequence[ValueRange]) -> list[tuple[str, list[ValueRange]]]:
    groups: dict[tuple[str, str], list[ValueRange]] = {}
    for value in values:
        name = re.sub(r"layers\.\d+", "layers.*", value.name)
        groups.setdefault((name, value.dtype), []).append(value)
    ordered = sorted(groups.items(), key=lambda item: -max(value.reach for value in item[1]))
    return [(name, members) for (name, _), members in ordered]
