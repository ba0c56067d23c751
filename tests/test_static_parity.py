"""The shipped checkpoint through fixed buffers gives what growing caches give, whatever unused rows hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.cases import Case
from kvparity.exporter.contract.spec import ExportOptions, present_name
from kvparity.runners.base import RunnerSpec, Session
from kvparity.runners.decode.play import play
from kvparity.runners.isolation.process import open_runner

ROOT = Path(__file__).resolve().parents[1]
EXACT = 1e-10  # evaluated in float64, where nothing but a fault of the graph can show
ROUNDING = 1e-5  # in float32; ONNX Runtime 1.32 gives the same bits, since both layouts add rows in the order of slots
CHUNK = 64


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    from kvparity.exporter.checkpoint.source import resolve
    from kvparity.exporter.export import export
    from kvparity.runners.reference.record import record_cases

    source = resolve(str(ROOT / "artifacts" / "tinygemma4text3m" / "hf"))
    options = ExportOptions(layout="static", max_len=1024, chunk=CHUNK)
    return export(source, tmp_path_factory.mktemp("static") / "bundle", options, record=record_cases)


def in_calls(case: Case, most: int) -> Case:
    """The same tokens with every call cut as the static layout's driver cuts it: a sum's order is a call's matter."""

    def cut() -> Iterator[int]:
        for tokens in case.chunks:
            yield from [most] * (tokens // most)
            if tokens % most:
                yield tokens % most

    return case if case.moves else replace(case, chunks=tuple(cut()))


def logits(bundle: Bundle, session: Session, case: Case, *, poison: bool = False) -> np.ndarray:
    """(batch, total, vocab) of a whole case; NaN stays, padding is 0. With moves, (tokens, vocab) call by call."""
    results = list(play(bundle, session, case, poison=poison))
    steps = [result.outputs["logits"].astype(np.float64) for result in results]
    if case.moves:
        live = [case.mask[result.step.which, result.step.start : result.step.stop] == 1 for result in results]
        return np.concatenate([array[rows] for array, rows in zip(steps, live, strict=True)])
    return np.where((case.mask == 1)[..., None], np.concatenate(steps, axis=1), 0.0)


def worst(static: Bundle, dynamic: Bundle, fixed: Session, grown: Session, name: str) -> float:
    """Largest difference of the logits of a case, poisoned buffers against growing caches; inf for NaN."""
    case = dynamic.vectors(name).case
    mine = logits(static, fixed, case, poison=True)
    theirs = logits(dynamic, grown, in_calls(case, CHUNK))
    assert mine.shape == theirs.shape
    assert case.moves or mine.shape == (case.batch, case.total, dynamic.model.vocab_size)
    return float(np.nan_to_num(np.abs(mine - theirs), nan=np.inf).max())


@pytest.mark.slow
@pytest.mark.parametrize(("runner", "limit"), [("exact", EXACT), ("ort", ROUNDING)])
def test_static_and_dynamic_logits_agree_on_every_case_with_poisoned_slots(
    tiny_bundle: Bundle, static: Bundle, runner: str, limit: float
) -> None:
    fixed, grown = open_runner(static, RunnerSpec(runner)), open_runner(tiny_bundle, RunnerSpec(runner))
    entries = tiny_bundle.manifest.cases
    cases = [entry.name for entry in entries if runner == "exact" or not entry.moves]  # those are not cut as chunks are
    assert {"prefill-1000", "decode-far", "decode-across", "batch-ragged"} <= set(cases)
    found = {name: worst(static, tiny_bundle, fixed, grown, name) for name in cases}
    assert max(found.values()) < limit, {name: value for name, value in found.items() if value >= limit}


@pytest.mark.slow
def test_a_ring_read_from_another_row_is_found(tiny_bundle: Bundle, static: Bundle) -> None:
    """Twin of the test above."""

    class Shifted:
        def __init__(self, inner: Session) -> None:
            self.inner, self.info = inner, inner.info

        def run(self, graph: str, inputs: dict) -> dict:  # type: ignore[type-arg]
            outputs = self.inner.run(graph, inputs)  # type: ignore[arg-type]
            name = present_name(0, "key")
            return {**outputs, name: np.roll(outputs[name], 1, axis=2)}

        def close(self) -> None:
            self.inner.close()

    spec = RunnerSpec("ort", {"threads": "1"})
    fixed, grown = open_runner(static, spec), open_runner(tiny_bundle, spec)
    assert worst(static, tiny_bundle, Shifted(fixed), grown, "handoff-128") > 1e-2  # type: ignore[arg-type]
