"""The bare profile: what the host computes is what the graphs compute, and the graphs use few operators."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from kvparity.exporter.contract.errors import ExportError
from kvparity.exporter.contract.host_inputs import compute, table, visible
from kvparity.exporter.contract.ports import graph_spec, host_inputs, resolve_options
from kvparity.exporter.contract.spec import DECODE, PREFILL, ExportOptions, RopeSpec, past_name
from kvparity.exporter.model.decoder import NO_POSITIONS
from kvparity.exporter.model.layouts.base import open_cache
from kvparity.exporter.model.probe import probe
from kvparity.exporter.model.rope import rope_specs
from kvparity.exporter.passes.expand_as_concat import repeat_by_concat
from kvparity.exporter.passes.expand_single_kv_head import repeat_one_head
from kvparity.exporter.passes.opset import to_opset
from kvparity.exporter.passes.reciprocal_to_div import divide
from kvparity.exporter.passes.slice_bounds import vector_lengths
from kvparity.exporter.trace.capture import _check_positions
from tests.synthetic import MODEL

ROPE = RopeSpec("", (1.0, 0.1), 1.0, "halves")


@pytest.mark.parametrize("pads", [(0, 0), (3, 0), (9, 2)])
@pytest.mark.parametrize(("start", "tokens"), [(0, 1), (0, 9), (3, 4), (20, 1), (20, 7)])
def test_host_masks_are_the_masks_of_the_graph(start: int, tokens: int, pads: tuple[int, int]) -> None:
    options, total = ExportOptions(), start + tokens
    mask = (np.arange(total) >= np.asarray(pads)[:, None]).astype(np.int64)
    inputs = {"input_ids": torch.zeros(2, tokens, dtype=torch.int64), "attention_mask": torch.from_numpy(mask)}
    for slot in MODEL.slots:
        for part in ("key", "value"):
            rows = slot.kept_rows(start)
            inputs[past_name(slot.slot, part)] = torch.zeros(2, slot.kv_heads, rows, slot.dim(part))
    made = open_cache(MODEL, options, inputs, torch.float32).masks()
    for slot in MODEL.slots:
        seen = visible(mask, tokens, slot.kept_rows(start) + tokens, slot.window)
        assert np.array_equal(seen[:, None], made[slot.layer].numpy() == 0)


def test_a_host_window_off_by_one_is_another_mask() -> None:
    """Twin of the test above."""
    mask = np.ones((1, 20), np.int64)
    assert not np.array_equal(visible(mask, 20, 20, 6), visible(mask, 20, 20, 7))


class _Rotary(torch.nn.Module):
    """A rotary embedding as transformers writes them; ``pairs`` interleaves, ``drift`` makes it no table."""

    def __init__(self, arrangement: str, drift: float = 0.0) -> None:
        super().__init__()
        self.arrangement, self.drift, self.attention_scaling = arrangement, drift, 1.25
        self.register_buffer("inv_freq", torch.tensor([1.0, 0.1, 0.01]), persistent=False)

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angle = position_ids[..., None].float() * self.inv_freq.float() * (1 + self.drift * position_ids.max())
        if self.arrangement == "halves":
            angle = torch.cat([angle, angle], dim=-1)
        elif self.arrangement == "pairs":
            angle = angle.repeat_interleave(2, dim=-1)
        return (angle.cos() * self.attention_scaling).to(x.dtype), (angle.sin() * self.attention_scaling).to(x.dtype)


_Rotary.__name__ = "SomeRotaryEmbedding"


@pytest.mark.parametrize("arrangement", ["halves", "pairs", "once"])
def test_tables_are_read_from_the_model_and_computed_as_it_does(arrangement: str) -> None:
    module = torch.nn.ModuleDict({"rotary_emb": _Rotary(arrangement)})
    (spec,) = rope_specs(module, 4096)
    assert (spec.name, spec.arrangement, spec.scaling) == ("", arrangement, 1.25)
    positions = np.asarray([[0, 5, 4095]])
    cos, sin = module["rotary_emb"](torch.zeros(1), torch.from_numpy(positions))
    assert np.abs(table(spec, "cos", positions, "float32") - cos.numpy()).max() < 1e-6
    assert np.abs(table(spec, "sin", positions, "float32") - sin.numpy()).max() < 1e-6
    assert spec.columns == cos.shape[-1]


def test_a_rotary_embedding_that_depends_on_the_length_has_no_table_and_bare_is_refused() -> None:
    assert rope_specs(torch.nn.ModuleDict({"rotary_emb": _Rotary("halves", drift=1e-6)}), 64) == ()
    with pytest.raises(ExportError, match=r"--profile bare: the rotary embedding of synthetic.*--profile portable"):
        resolve_options(ExportOptions(profile="bare"), MODEL)


def test_ports_name_masks_and_tables_and_nothing_of_positions() -> None:
    from dataclasses import replace

    model = replace(MODEL, ropes=(ROPE,))
    options = resolve_options(ExportOptions(profile="bare"), model)
    names = ["input_ids", "mask.sliding_6", "mask.full", "rope.cos", "rope.sin"]
    for kind in (PREFILL, DECODE):
        assert [port.name for port in graph_spec(kind, model, options).inputs][:5] == names
    assert [item.name for item in host_inputs(model, options)] == names[1:]
    inputs = {"attention_mask": np.ones((2, 9), np.int64), "position_ids": np.asarray([[7, 8]] * 2)}
    made = compute(host_inputs(model, options), inputs, {None: 9, 6: 7}, "float32")
    assert {name: array.shape for name, array in made.items()} == {
        "mask.sliding_6": (2, 1, 2, 7),
        "mask.full": (2, 1, 2, 9),
        "rope.cos": (2, 2, 4),
        "rope.sin": (2, 2, 4),
    }


def _graph(nodes: list[ir.Node], inputs: list[ir.Value], outputs: list[ir.Value], opset: int = 18) -> ir.Model:
    return ir.Model(ir.Graph(inputs, outputs, nodes=nodes, opset_imports={"": opset}), ir_version=8)


def _value(name: str, shape: list[int | str]) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


def test_a_product_with_a_reciprocal_becomes_a_division() -> None:
    x, y = _value("x", [3]), _value("y", [3])
    inverse = ir.node("Reciprocal", [y])
    product = ir.node("Mul", [inverse.outputs[0], x])
    model = _graph([inverse, product], [x, y], [product.outputs[0]])
    divide(model)
    (node,) = model.graph
    assert (node.op_type, list(node.inputs)) == ("Div", [x, y])


def test_repeated_heads_become_a_concat_but_a_computed_expand_stays() -> None:
    x, target = _value("x", ["batch", 1, 4]), ir.Value(name="t", const_value=ir.tensor(np.asarray([1, 3, 1])))
    computed = ir.Value(name="computed")
    fixed, free = ir.node("Expand", [x, target]), ir.node("Expand", [x, computed])
    fixed.outputs[0].shape = ir.Shape(["batch", 3, 4])
    model = _graph([fixed, free], [x, computed], [fixed.outputs[0], free.outputs[0]])
    model.graph.register_initializer(target)
    repeat_by_concat(model)
    assert [node.op_type for node in model.graph] == ["Concat", "Expand"]
    assert list(next(iter(model.graph)).inputs) == [x, x, x]


def test_lengths_stay_vectors() -> None:
    x, one = _value("x", ["batch", "rows"]), ir.Value(name="one", const_value=ir.tensor(np.asarray(1)))
    flat = ir.Value(name="flat", const_value=ir.tensor(np.asarray([-1])))
    shape = ir.node("Shape", [x], attributes={"start": 1, "end": 2})
    scalar = ir.node("Squeeze", [shape.outputs[0]])
    less = ir.node("Sub", [scalar.outputs[0], one])
    vector = ir.node("Reshape", [less.outputs[0], flat])
    cut = ir.node("Slice", [x, vector.outputs[0], vector.outputs[0]])
    model = _graph([shape, scalar, less, vector, cut], [x], [cut.outputs[0]])
    for constant in (one, flat):
        model.graph.register_initializer(constant)
    vector_lengths(model)
    assert [node.op_type for node in model.graph] == ["Shape", "Sub", "Slice"]


def test_below_opset_18_a_reduction_carries_its_axes_and_above_26_nothing_is_known() -> None:
    x, axes = _value("x", [3, 4]), ir.Value(name="axes", const_value=ir.tensor(np.asarray([1])))
    mean = ir.node("ReduceMean", [x, axes], attributes={"keepdims": 1})
    model = _graph([mean], [x], [mean.outputs[0]])
    to_opset(model, 17)
    (node,) = model.graph
    assert len(node.inputs) == 1
    assert list(node.attributes["axes"].as_ints()) == [1]
    assert model.opset_imports[""] == 17
    with pytest.raises(ExportError, match="--opset 99"):
        to_opset(model, 99)


@pytest.mark.parametrize("used", [False, True])
def test_a_model_that_uses_positions_beyond_its_tables_is_refused(used: bool) -> None:
    class Model(torch.nn.Module):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            positions = probe(torch.zeros_like(ids), NO_POSITIONS)
            angles = positions * 2  # what a rotary embedding whose output is replaced leaves behind
            return ids + angles if used else ids + 1

    program = torch.export.export(Model(), (torch.zeros(1, 3, dtype=torch.int64),))
    if not used:
        _check_positions(program, MODEL)
        return
    with pytest.raises(ExportError, match=r"synthetic uses positions beyond its rotary embedding.*--profile portable"):
        _check_positions(program, MODEL)


@pytest.mark.parametrize(("heads", "expected"), [(1, ["Expand"]), (2, ["Unsqueeze", "Expand", "Reshape"])])
def test_one_head_is_repeated_by_one_expand_and_two_are_left_alone(heads: int, expected: list[str]) -> None:
    x = ir.Value(name="x", shape=ir.Shape(["batch", heads, "rows", 8]), type=ir.TensorType(ir.DataType.FLOAT))
    axis, target, shape = (ir.Value(name=name) for name in ("axis", "target", "shape"))
    wide = ir.node("Unsqueeze", [x, axis])
    expanded = ir.node("Expand", [wide.outputs[0], target])
    joined = ir.node("Reshape", [expanded.outputs[0], shape])
    joined.outputs[0].shape = ir.Shape(["batch", heads * 4, "rows", 8])
    last = ir.node("Neg", [joined.outputs[0]])
    inputs, nodes = [x, axis, target, shape], [wide, expanded, joined, last]
    graph = ir.Graph(inputs, last.outputs, nodes=nodes, opset_imports={"": 18}, name="g")
    model = ir.Model(graph, ir_version=8)
    repeat_one_head(model)
    assert [node.op_type for node in model.graph] == [*expected, "Neg"]
    if heads == 1:
        assert model.graph.initializers["shape_1_4_1_1"].const_value is not None
