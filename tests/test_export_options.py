"""Export options on a small model: other caches, other logits, the same bytes twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.spec import ExportOptions
from kvparity.runners.base import RunnerSpec
from kvparity.runners.compare.judge import JudgeOptions, judge
from tests.families import FAMILIES, make_config, save_checkpoint

pytest.importorskip("torch", reason="the exporter's extra is not installed")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Gemma 3 of a few thousand parameters: sliding and full layers, window 8."""
    family = next(family for family in FAMILIES if family.name == "gemma3")
    return Path(save_checkpoint(make_config(family), tmp_path_factory.mktemp("gemma3") / "hf"))


def exported(checkpoint: Path, target: Path, options: ExportOptions, *, in_process: bool = True) -> Bundle:
    from kvparity.exporter.checkpoint.source import resolve
    from kvparity.exporter.export import export
    from kvparity.runners.reference.record import record_cases

    return export(resolve(str(checkpoint)), target, options, record=record_cases, limit=40, in_process=in_process)


@pytest.mark.parametrize(
    "options",
    [
        ExportOptions(sliding_cache="full"),
        ExportOptions(logits="last"),
        pytest.param(ExportOptions(sliding_cache="full", logits="last"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_other_caches_and_logits_match_and_are_exact(checkpoint: Path, tmp_path: Path, options: ExportOptions) -> None:
    bundle = exported(checkpoint, tmp_path / "bundle", options)
    decode = bundle.graph("decode").spec
    sliding = next(slot for slot in bundle.model.slots if slot.kind == "sliding")
    rows = next(port for port in decode.inputs if port.name == f"past_key_values.{sliding.slot}.key").shape[2]
    assert (rows == "past") == (options.sliding_cache == "full")
    assert (decode.outputs[0].shape[1] == 1) == (options.logits == "last")
    cases = ("decode-far", "chunk-7", "batch-ragged")
    report = judge(bundle, JudgeOptions((RunnerSpec("ort"),), cases, tol="auto", budget=4.0, exact=True))
    assert report.verdict == "match", report.first_divergence


@pytest.mark.slow
def test_the_same_checkpoint_gives_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    first, second = (
        exported(checkpoint, tmp_path / name, ExportOptions(), in_process=False).root for name in ("a", "b")
    )
    names = sorted(str(path.relative_to(first)) for path in first.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(second)) for path in second.rglob("*") if path.is_file())
    assert [name for name in names if (first / name).read_bytes() != (second / name).read_bytes()] == []
