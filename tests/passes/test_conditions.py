"""Conditions of passes are executed: each violation is found, and names the pass and the node."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from kvparity.exporter.contract.spec import FLOAT64_CONSTANTS
from kvparity.exporter.passes.conditions import (
    digits_round,
    graph_pass,
    lacks,
    shaped,
    sound,
    unique_names,
    without_float64,
)
from tests.passes.test_passes import graph

TEXT = "g (float[b] x) => (float[b] y) <float t = {0.1}, float[b] n> { n = Mul(x, t) y = Abs(n) }"


def violations(condition: object, model: ir.Model) -> list[str]:
    return list(condition(model))  # type: ignore[operator]


def test_a_right_graph_violates_nothing() -> None:
    model = graph(TEXT)
    model.metadata_props[FLOAT64_CONSTANTS] = '{"t": ["0x1.999999999999ap-4"]}'
    model.graph.node(0).name, model.graph.node(1).name = "a", "b"
    for condition in (digits_round, lacks("Neg"), shaped, sound, unique_names, without_float64):
        assert violations(condition, model) == []


def test_a_value_that_nothing_made_is_found() -> None:
    model = graph(TEXT)
    model.graph.node(1).replace_input_with(0, ir.Value(name="lost"))
    assert violations(sound, model) == ["Abs reads lost, which nothing before it makes"]


def test_an_operator_before_what_it_reads_is_found() -> None:
    model = graph(TEXT)
    first = model.graph.node(0)
    model.graph.remove(first)
    model.graph.insert_after(model.graph.node(0), first)
    assert violations(sound, model) == ["Abs reads n, which nothing before it makes"]


def test_a_domain_that_is_not_imported_is_found() -> None:
    model = graph(TEXT)
    model.graph.node(0).domain = "ai.elsewhere"
    assert violations(sound, model) == ["Mul is of ai.elsewhere, which is not imported"]


def put(attribute: str, value: object, *things: object) -> None:
    for thing in things:
        setattr(thing, attribute, value)


@pytest.mark.parametrize(
    ("condition", "change", "found"),
    [
        (lacks("Mul"), lambda model: None, "Mul"),
        (shaped, lambda model: put("shape", None, *(v for n in model.graph for v in n.outputs)), "no value has"),
        (without_float64, lambda model: put("dtype", ir.DataType.DOUBLE, model.graph.node(0).outputs[0]), "n is"),
        (unique_names, lambda model: put("name", "a", *model.graph), "two nodes are called a"),
        (digits_round, lambda model: model.metadata_props.update({FLOAT64_CONSTANTS: '{"t": ["0x1p-4"]}'}), "t is not"),
    ],
)
def test_what_a_condition_forbids_is_found(condition: object, change: object, found: str) -> None:
    model = graph(TEXT)
    change(model)  # type: ignore[operator]
    assert violations(condition, model)[0].startswith(found)


def test_a_pass_is_stopped_by_its_conditions_before_and_after() -> None:
    @graph_pass(requires=[lacks("Neg")], ensures=[lacks("Abs")])
    def idle(model: ir.Model) -> None:
        """Change nothing."""

    with pytest.raises(ir.passes.PostconditionError, match="after idle: Abs"):
        idle(graph(TEXT))
    with pytest.raises(ir.passes.PreconditionError, match="before idle: Neg"):
        idle(graph(TEXT.replace("Abs", "Neg")))
