"""Short names in graph files: nothing is lost, and nobody has to know them."""

from __future__ import annotations

import json

import onnx_ir as ir
import pytest

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.names import (
    PROBES,
    SCOPES,
    Abbreviations,
    file_name,
    kept_probes,
    number,
    spell_out,
    split_path,
)
from kvparity.runners.locate.graphs import open_graph

KINDS = ("prefill", "decode")
INNER = (
    "",
    "self_attn",
    "self_attn.q_norm",
    "mlp.act_fn",
    "act_fn",
    "post_attention_layernorm",
    "pre_attention_layernorm",
)


@pytest.mark.parametrize("inner", INNER)
def test_a_short_name_stands_for_one_path(inner: str) -> None:
    short = Abbreviations.of("layers", INNER)
    path = f"layers.12.{inner}".rstrip(".")
    assert short.path_of_value(short.value(path)) == path
    assert short.path_of_scope(short.scope(path)) == path
    assert short.path_of_weight(short.weight(f"{path}.weight")) == f"{path}.weight"
    assert len(set(short.values.values())) == len(set(short.scopes.values())) == len(INNER)


@pytest.mark.parametrize(
    "name", ["embed_tokens", "mask.full", "encoder.3.self_attn", "layers.3.unknown", "lm_head.weight"]
)
def test_a_name_outside_of_the_table_stays(name: str) -> None:
    short = Abbreviations.of("layers", INNER)
    assert short.value(name) == short.scope(name) == short.path_of_value(name) == short.path_of_scope(name) == name


def test_a_path_is_cut_at_its_first_number() -> None:
    assert split_path("layers.1.mlp.experts.0.up") == ("layers", "1", "mlp.experts.0.up")
    assert split_path("transformer.h.11") == ("transformer.h", "11", "")
    assert split_path("norm") == ("norm", "", "")


def test_numbers_are_in_base_36() -> None:
    assert [number(index) for index in (0, 35, 36, 36 * 36 + 5)] == ["0", "z", "10", "105"]


@pytest.mark.parametrize("kind", KINDS)
def test_names_in_a_file_are_unique_and_say_their_layer(tiny_bundle: Bundle, kind: str) -> None:
    graph = ir.load(tiny_bundle.graph_path(kind)).graph  # type: ignore[arg-type]
    names = [str(node.name) for node in graph]
    assert len(set(names)) == len(names)
    assert not {"", None} & set(names)
    layers = {name.split("/")[0] for name in names if name.split("/")[0].isdigit()}
    assert layers == {str(layer.index) for layer in tiny_bundle.model.layers}


@pytest.mark.parametrize("kind", KINDS)
def test_spelling_out_gives_every_node_probe_and_weight_its_path(tiny_bundle: Bundle, kind: str) -> None:
    short, long = ir.load(tiny_bundle.graph_path(kind)), open_graph(tiny_bundle, kind)  # type: ignore[arg-type]
    nodes = {str(node.name): node for node in long.graph}
    assert file_name(nodes["layers.1.self_attn.q_norm/Mul_2"]) in {node.name for node in short.graph}
    assert [file_name(node) for node in long.graph] == [node.name for node in short.graph]
    layers = {split_path(name.split("/")[0])[1] for name in nodes} - {""}
    assert layers == {str(layer.index) for layer in tiny_bundle.model.layers}
    assert {name for name in long.graph.initializers if "weight" in name} <= _stored(tiny_bundle)
    before, after = kept_probes(short), kept_probes(long)
    assert before.keys() == after.keys()
    ports = {value.name for value in long.graph.outputs}
    assert all(name == probe or name in ports for probe, name in after.items())
    assert SCOPES not in long.metadata_props
    names = [node.name for node in long.graph]
    spell_out(long)
    assert names == [node.name for node in long.graph]


def test_probes_of_earlier_bundles_are_read() -> None:
    model = ir.Model(ir.Graph([], [], nodes=[], name="g"), ir_version=8)
    model.metadata_props[PROBES] = json.dumps({"a": "v1"})
    assert kept_probes(model) == {"a": "v1"}
    model.metadata_props[PROBES] = json.dumps(["a", ["b", "present.0.key"]])
    assert kept_probes(model) == {"a": "a", "b": "present.0.key"}


def _stored(bundle: Bundle) -> set[str]:
    from kvparity.exporter.checkpoint.source import read_safetensors_header

    return set(read_safetensors_header(bundle.root / bundle.manifest.weights[0].path))
