"""Each family through the whole pipeline; the default run takes three that together have most features."""

from __future__ import annotations

from pathlib import Path

import pytest
from families import FAMILIES, Family, make_config, save_checkpoint

from exporter.bundle import Bundle
from exporter.errors import ExportError
from exporter.features import coverage_lines
from exporter.spec import ExportOptions
from runners.base import RunnerSpec
from runners.diff.records import Report
from runners.judge import JudgeOptions, judge

pytest.importorskip("torch", reason="the exporter's extra is not installed")

CASES = ("decode-far", "chunk-7", "batch-ragged", "batch-chunks")


def exported(family: Family, folder: Path) -> Bundle:
    from exporter.checkpoint import resolve
    from exporter.export import export
    from runners.record import record_cases

    checkpoint = resolve(str(save_checkpoint(make_config(family), folder / "hf")))
    return export(checkpoint, folder / "bundle", ExportOptions(), record=record_cases, limit=40, in_process=True)


def judged(bundle: Bundle) -> Report:
    known = {case.name for case in bundle.manifest.cases}
    cases = tuple(name for name in CASES if name in known)
    return judge(
        bundle, JudgeOptions((RunnerSpec("ort", {"threads": "1"}),), cases, tol="auto", budget=4.0, exact=True)
    )


@pytest.mark.parametrize(
    "family", [pytest.param(f, id=f.name, marks=() if f.quick else pytest.mark.slow) for f in FAMILIES if not f.refused]
)
def test_a_family_computes_what_pytorch_computes(family: Family, tmp_path: Path) -> None:
    bundle = exported(family, tmp_path)
    report = judged(bundle)
    assert report.verdict == "match", report.first_divergence
    shared = [layer.index for layer in bundle.model.layers if not layer.owns_slot]
    assert ("KV sharing" in bundle.model.features) == bool(shared)


@pytest.mark.slow
def test_a_wrong_window_of_a_sharing_layer_is_a_mismatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from exporter.layouts import dynamic

    right = dynamic.Cache.mask

    def wrong(self, layer):  # type: ignore[no-untyped-def]
        from dataclasses import replace

        return right(
            self, layer if layer.owns_slot or layer.window is None else replace(layer, window=layer.window + 1)
        )

    monkeypatch.setattr(dynamic.Cache, "mask", wrong)
    monkeypatch.setattr(dynamic.Cache, "masks", lambda self: {x.index: self.mask(x) for x in self.spec.layers})
    family = next(f for f in FAMILIES if "E2B" in f.name)
    assert judged(exported(family, tmp_path)).verdict == "mismatch"


@pytest.mark.parametrize("family", [pytest.param(f, id=f.name) for f in FAMILIES if f.refused])
def test_a_family_that_is_no_key_value_decoder_is_refused_by_name(family: Family, tmp_path: Path) -> None:
    from exporter.checkpoint import resolve
    from exporter.describe import model_spec

    make_config(family).save_pretrained(tmp_path)
    checkpoint = resolve(str(tmp_path))
    config = checkpoint.config()

    def described() -> None:
        model_spec(config, checkpoint.shell(config), "float32")

    with pytest.raises(ExportError, match=family.refused):
        described()


def test_what_a_bundle_does_not_prove_names_the_window_that_no_case_reaches(tiny_bundle: Bundle) -> None:
    window = tiny_bundle.model.window
    assert window is not None
    assert "beyond the window" not in coverage_lines(tiny_bundle.model, [2 * window])[1]
    assert f"beyond the window of {window}" in coverage_lines(tiny_bundle.model, [window])[1]
    assert "mixture of experts" in coverage_lines(tiny_bundle.model, [2 * window])[1]
