"""A trace at several examples of its sizes is right at every size, or refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="the exporter's extra is not installed")

Forward = Callable[[Any, Any], Any]
SIZES = ((433, 769), (630, 1030), (2, 3), (5, 2))


class Joined(torch.nn.Module):
    """Calls a function on ``past`` (batch, past, 4) and ``new`` (batch, sequence, 4)."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self._forward = forward

    def forward(self, inputs: dict[str, Any]) -> list[Any]:
        return [self._forward(inputs["past"], inputs["new"])]


def recorded(forward: Forward, sizes: Sequence[tuple[int, int]] = SIZES) -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode

    from kvparity.exporter.trace.record.program import record

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        examples = [
            {"past": torch.zeros(3 + place, past, 4), "new": torch.zeros(3 + place, new, 4)}
            for place, (past, new) in enumerate(sizes)
        ]
    return record(Joined(forward), examples, mode)


def translated(forward: Forward) -> Any:
    import onnx_ir as ir

    from kvparity.exporter.trace.capture import _translate_directly
    from kvparity.exporter.trace.onnx_translations import translation_table

    program = recorded(forward)
    with program.shapes:
        return ir.to_proto(_translate_directly(program, translation_table("portable")))


def newest(past: Any, new: Any) -> Any:
    """The last rows of both, flattened: at most 6."""
    rows = torch.cat([past, new], dim=1)
    total = rows.shape[1]
    kept = rows[:, torch.sym_max(total - 6, 0) : total] * 2 + 1
    return kept.reshape(kept.shape[0] * kept.shape[1], 4)


@pytest.mark.parametrize(("past", "new"), [(0, 1), (1, 1), (3, 3), (4, 3), (9, 5), (0, 40)])
def test_a_graph_is_right_at_sizes_that_no_example_has(past: int, new: int) -> None:
    from onnx.reference import ReferenceEvaluator

    session = ReferenceEvaluator(translated(newest))
    drawn = np.random.default_rng(0)
    feeds = {name: drawn.standard_normal((2, rows, 4), np.float32) for name, rows in (("past", past), ("new", new))}
    (found,) = session.run(None, feeds)
    expected = newest(*(torch.from_numpy(array) for array in feeds.values())).numpy()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() == 0


def test_a_decision_that_examples_disagree_on_is_refused() -> None:
    from kvparity.exporter.trace.record.sizes import UnsureError

    def forward(past: Any, new: Any) -> Any:
        return new * 2 if past.shape[1] > 100 else new

    with pytest.raises(UnsureError, match="a decision depends on sizes"):
        recorded(forward)
    assert recorded(forward, SIZES[:2])  # twin: two large examples alone agree


def test_a_clamp_that_no_example_needs_is_refused() -> None:
    from kvparity.exporter.trace.record.sizes import UnsureError

    assert recorded(newest)
    with pytest.raises(UnsureError, match="no example shows"):
        recorded(newest, SIZES[:2])


def test_a_size_taken_as_a_plain_number_is_refused() -> None:
    from kvparity.exporter.trace.record.sizes import UnsureError

    def counted(past: Any, new: Any) -> Any:
        return new * len(range(past.shape[1]))

    def lost(past: Any, new: Any) -> Any:
        return new.sum(dim=1).expand(769, -1, -1)  # the number of the first example, from somewhere else

    for forward, reason in ((counted, "a plain number"), (lost, "is an example's size")):
        with pytest.raises(UnsureError, match=reason):
            recorded(forward)


def test_sizes_equal_at_every_example_are_one() -> None:
    """Rows of both less the new ones are the past's: one node says so, and no arithmetic is left."""

    def forward(past: Any, new: Any) -> Any:
        rows = torch.cat([past, new], dim=1)
        return rows[:, : rows.shape[1] - new.shape[1]]

    program = recorded(forward)
    program.graph.eliminate_dead_code()
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert names == ["aten.sym_size.int", "aten.cat.default", "aten.slice.Tensor"]


def test_what_the_recorder_refuses_is_traced_by_torch_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways give the same operators, in any order."""
    import kvparity.exporter.trace.capture
    import kvparity.exporter.trace.record.program
    from tests.program_ways import operators

    quick = operators()
    asked: list[str] = []
    whole = kvparity.exporter.trace.capture._export

    def export(*arguments: Any) -> Any:
        asked.append("asked")
        return whole(*arguments)

    def refuse(*_: Any) -> Any:
        raise RuntimeError("an operator that nobody knows")

    monkeypatch.setattr(kvparity.exporter.trace.capture, "_export", export)
    assert operators() == quick
    assert not asked
    monkeypatch.setattr(kvparity.exporter.trace.record.program, "record", refuse)
    assert operators() == quick
    assert asked


def test_what_is_written_into_a_tensor_is_read_afterwards() -> None:
    from onnx.reference import ReferenceEvaluator

    def forward(past: Any, new: Any) -> Any:
        doubled = torch.cat([past, new], dim=1) * 2
        doubled += 1
        return doubled * doubled

    feeds = {name: np.full((2, rows, 4), rows, np.float32) for name, rows in (("past", 3), ("new", 2))}
    (found,) = ReferenceEvaluator(translated(forward)).run(None, feeds)
    expected = (2 * np.concatenate(list(feeds.values()), axis=1) + 1) ** 2
    assert np.abs(found - expected).max() == 0


def test_what_is_written_through_a_view_is_left_to_torch_export() -> None:
    from kvparity.exporter.trace.in_place_operators import UnsupportedError

    def forward(past: Any, new: Any) -> Any:
        rows = torch.cat([past, new], dim=1) * 2
        rows[:, :1].add_(1)
        return rows

    def twice(past: Any, new: Any) -> Any:
        rows = torch.cat([past, new], dim=1) * 2
        turned = rows.transpose(1, 2)
        rows[..., :1].add_(1)
        return turned

    for function in (forward, twice):
        with pytest.raises(UnsupportedError, match="is written"):
            recorded(function)


def test_parts_of_a_tensor_that_are_written_are_joined() -> None:
    """As latent attention fills its keys, and as ``x[..., 1:] += y`` does."""
    from onnx.reference import ReferenceEvaluator

    def forward(past: Any, new: Any) -> Any:
        rows = torch.cat([past, new], dim=1)
        keys = rows.new_empty(*rows.shape[:-1], 6)
        keys[..., :4].copy_(rows)
        keys[..., 4:].copy_(rows[..., :2])
        doubled = keys * 2
        doubled[..., 1:3] += 7
        return doubled

    model = translated(forward)
    assert {node.op_type for node in model.graph.node}.isdisjoint({"ScatterND", "ScatterElements"})
    feeds = {name: np.full((2, rows, 4), rows, np.float32) for name, rows in (("past", 3), ("new", 2))}
    (found,) = ReferenceEvaluator(model).run(None, feeds)
    expected = forward(*(torch.from_numpy(array) for array in feeds.values())).numpy()
    assert np.array_equal(found, expected)
