"""Recorded values are located in every family alike: what is scaled inside an engine is named, and nothing else."""

from __future__ import annotations

import random
from pathlib import Path

import onnx_ir as ir
import pytest

from kvparity.exporter.contract.bundle import Bundle
from kvparity.runners.locate.graphs import open_graph, probes_of
from tests.families import by_name, make_config, save_checkpoint
from tests.mutants.editor import Editor
from tests.mutants.mutant import Mutant
from tests.mutants.recording import RecordingEngine, locate_recorded
from tests.mutants.trial import mutated

pytest.importorskip("torch", reason="the exporter's extra is not installed")

COUNT = 4


def bundle_of(family: str, folder: Path) -> Bundle:
    from kvparity.exporter.checkpoint.source import resolve
    from kvparity.exporter.contract.spec import ExportOptions
    from kvparity.exporter.export import export
    from kvparity.runners.reference.record import record_cases

    save_checkpoint(make_config(by_name(family)), folder / "hf")
    return export(resolve(str(folder / "hf")), folder / "bundle", ExportOptions(), record=record_cases, limit=24)


def scaled(probe: str) -> Mutant:
    def edit(editor: Editor) -> None:
        editor.rewrite(probe, lambda value: editor.add("Mul", [value, editor.constant(1.03)], value.producer()))

    return Mutant(f"scaled {probe}", "a value is 3 % too large", probe, edit, graphs=("prefill",))


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", ["llama", "gemma3", "gpt_oss", "mixtral", "phi3", "cohere2", "gpt_neox", "opt", "deepseek_v3"]
)
def test_a_scaled_value_is_named_in_every_family(family: str, tmp_path: Path) -> None:
    bundle = bundle_of(family, tmp_path)
    name = max(
        (e for e in bundle.manifest.cases if e.file and e.name.startswith("prefill-")), key=lambda e: e.total
    ).name
    vectors = bundle.vectors(name)
    graph = open_graph(bundle, "prefill")
    probes = probes_of(graph)
    types = {str(value.name): value.dtype for node in graph.graph for value in node.outputs}
    floats = [
        p for p, value in probes.items() if types[value] in (None, ir.DataType.FLOAT) and not p.startswith("mask.")
    ]
    seen = 0
    for probe in random.Random(7).sample(floats, len(floats)):
        with mutated(bundle, scaled(probe)) as damaged:
            location = locate_recorded(bundle, RecordingEngine(damaged), vectors, 1e-4)
        if location is None:  # a norm takes the factor away again: no output differs
            continue
        assert (location.fault, probes[location.probe]) == ("engine", probes[probe])
        seen += 1
        if seen == COUNT:
            break
    assert seen == COUNT
