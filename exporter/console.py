"""What the exporter prints: one line per stage on stderr, a bundle or a checkpoint on stdout."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from rich.console import Console

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.features import coverage_lines
from kvparity.exporter.contract.spec import ModelSpec
from kvparity.exporter.export import Stage

__all__ = ["Progress", "print_bundle", "print_checkpoint"]

_WHAT = {
    "adapter": "adapter merged into the weights",
    "read": "config read, layers and cache slots known",
    "weights": "one copy of the weights placed",
    "quantize": "linear layers, experts and embeddings rounded to blocks",
    "trace": "prefill and decode graphs traced",
    "check": "ports, operators, external data checked",
    "vectors": "reference vectors recorded from PyTorch",
}


class Progress:
    """Prints stages as they finish, and the case being recorded where stderr is a terminal."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._status = self._console.status("reading") if self._console.is_terminal else None
        self.stages: list[Stage] = []
        if self._status is not None:
            self._status.start()

    def stage(self, stage: Stage) -> None:
        """Print one finished stage: name, seconds, peak memory, and a remark."""
        self.stages.append(stage)
        what, note = _WHAT.get(stage.name, ""), stage.note
        if stage.name == "trace":  # its line names the tracer
            what, note = f"graphs traced: {note}", ""
        self._console.print(
            f"  {stage.name:<8} {stage.seconds:6.1f} s  {stage.peak_mb:7.0f} MB peak  {what}", soft_wrap=True
        )
        if note:
            self._console.print(f"  {stage.name:<8} note: {note}", soft_wrap=True)
        if self._status is not None:
            self._status.update("working")

    def sequence(self, name: str, index: int, count: int) -> None:
        """Show which sequence is being recorded."""
        if self._status is not None:
            self._status.update(f"recording sequence {index + 1} of {count}: {name}")

    def stop(self) -> None:
        """End the status line."""
        if self._status is not None:
            self._status.stop()


def print_bundle(bundle: Bundle, stages: list[Stage], *, as_json: bool) -> None:
    """Say what was written: for people, or as JSON."""
    manifest = bundle.manifest
    size = sum(entry.bytes for entry in manifest.weights)
    graphs = sum(graph.file.bytes for graph in manifest.graphs.values())
    recorded = [case for case in manifest.cases if manifest.is_recorded(case)]
    if as_json:
        answer = {
            "bundle": str(bundle.root),
            "model": asdict(manifest.model),
            "weights_bytes": size,
            "graphs_bytes": graphs,
            "quantization": None if manifest.quantization is None else asdict(manifest.quantization),
            "cases": [case.name for case in manifest.cases],
            "recorded": [case.name for case in recorded],
            "stages": [asdict(stage) for stage in stages],
        }
        sys.stdout.write(json.dumps(answer, indent=1) + "\n")
        return
    model, options = manifest.model, manifest.options
    print(
        f"{model.architecture} {model.pattern if len(model.pattern) <= 40 else f'{len(model.layers)} layers'}, "
        f"{model.parameters:,} parameters, {options.layout} layout, {options.profile} profile, {options.dtype}"
    )
    print(f"weights {size / 1e6:.1f} MB once, graphs {graphs / 1e6:.2f} MB, {manifest.recorded_line()}")
    lengths = [case.total for case in recorded]
    if recorded:
        reach = f"longest case {max(lengths):,} of {model.max_position:,} positions"
        short = [window for window in sorted(model.windows) if max(lengths) <= window]
        print(reach + (f"; none passes the window of {', '.join(f'{window:,}' for window in short)}" if short else ""))
    for line in manifest.quantization.lines(size) if manifest.quantization is not None else ():
        print(line)
    print(f"bundle  {bundle.root}")


def print_checkpoint(spec: ModelSpec, shown: str, quantised: str = "") -> None:
    """Say what a checkpoint has, and what a bundle of it would prove."""
    print(f"{shown}  {spec.architecture} ({spec.model_type}), {spec.parameters:,} parameters")
    print(
        f"layers {spec.pattern}, hidden {spec.hidden_size}, heads {spec.heads}, vocabulary {spec.vocab_size:,}, "
        f"positions {spec.max_position:,}, window {spec.window or 'none'}, {len(spec.slots)} cache slots"
    )
    if quantised:
        print(f"weights quantised with {quantised}; a bundle holds the dense ones that they stand for")
    proves, missing = coverage_lines(spec, [2 * (spec.window or 0) + 1])
    print(proves.replace("this bundle", "a bundle of it"))
    print(missing.replace("this bundle does", "a bundle of it does"))
