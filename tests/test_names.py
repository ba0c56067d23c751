"""Names in graph files: module paths that Netron and ONNX Runtime show, and probes found by them."""

from __future__ import annotations

import re

import onnx_ir as ir
import pytest

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.probes import keep_probes, kept_probes
from kvparity.exporter.contract.spec import GraphKind

KINDS: tuple[GraphKind, ...] = ("prefill", "decode")


@pytest.mark.parametrize("kind", KINDS)
def test_nodes_are_called_by_module_and_operator(tiny_bundle: Bundle, kind: GraphKind) -> None:
    nodes = {str(node.name): node for node in ir.load(tiny_bundle.graph_path(kind)).graph}
    assert len(nodes) == len(list(ir.load(tiny_bundle.graph_path(kind)).graph))
    for name, node in nodes.items():
        assert re.fullmatch(rf"(?:[\w.]+/)?{node.op_type}(?:_\d+)?", name)
    assert {"layers.1.self_attn.q_norm/Mul", "layers.1.self_attn.q_norm/ReduceMean", "embed_tokens/Gather"} <= set(
        nodes
    )
    layers = {int(found[1]) for name in nodes if (found := re.match(r"layers\.(\d+)[./]", name))}
    assert layers == {layer.index for layer in tiny_bundle.model.layers}


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_called_by_module_or_by_layer_and_operator(tiny_bundle: Bundle, kind: GraphKind) -> None:
    graph = ir.load(tiny_bundle.graph_path(kind)).graph
    values = [value for node in graph for value in node.outputs]
    names = [str(value.name) for value in values]
    assert len(set(names)) == len(names)
    for value in values:
        node, name = value.producer(), str(value.name)
        assert node is not None
        assert value.is_graph_output() or "/" not in name or f"/{node.op_type}" in name
    assert "layers.1.self_attn.q_norm" in names
    assert graph.node("layers.1.mlp.down_proj/MatMul").outputs[0].name == "layers.1.mlp.down_proj"
    assert {name for name in graph.initializers if "weight" in name} <= _stored(tiny_bundle)


@pytest.mark.parametrize("kind", KINDS)
def test_probes_are_found_by_their_names(tiny_bundle: Bundle, kind: GraphKind) -> None:
    model = ir.load(tiny_bundle.graph_path(kind))
    probes = kept_probes(model)
    assert probes["layers.1.self_attn.q_norm"] == "layers.1.self_attn.q_norm"
    assert probes["lm_head"] == "logits"
    assert {f"layers.{layer.index}" for layer in tiny_bundle.model.layers} <= probes.keys()
    returned = {str(value.name) for node in model.graph for value in node.outputs}
    assert set(probes.values()) <= returned
    assert not [name for name in probes if "/" in name]
    repeated = sum(len(text) for key, text in model.metadata_props.items() if "probes" in key)
    assert repeated < 300, "only ports are listed"


def test_both_graphs_take_at_most_2_percent_of_the_weights(tiny_bundle: Bundle) -> None:
    graphs = sum(tiny_bundle.graph_path(kind).stat().st_size for kind in KINDS)
    weights = (tiny_bundle.root / tiny_bundle.manifest.weights[0].path).stat().st_size
    assert graphs <= 0.02 * weights


def test_a_graph_of_others_has_no_probes_and_listed_ports_are_found() -> None:
    one, two, three = (ir.Value(name=name) for name in ("x", "layers.0", "present.0.key"))
    nodes = [ir.Node("", "Neg", [one], outputs=[two]), ir.Node("", "Abs", [two], outputs=[three])]
    model = ir.Model(ir.Graph([one], [three], nodes=nodes, name="g"), ir_version=8)
    assert kept_probes(model) == {}
    keep_probes(model, {"layers.0": "layers.0", "layers.0.self_attn.key": "present.0.key"})
    assert kept_probes(model) == {"layers.0": "layers.0", "layers.0.self_attn.key": "present.0.key"}


def _stored(bundle: Bundle) -> set[str]:
    from kvparity.exporter.checkpoint.source import read_safetensors_header

    return set(read_safetensors_header(bundle.root / bundle.manifest.weights[0].path))
