"""Each family through the whole pipeline; the default run takes three that together have most features."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.errors import ExportError
from kvparity.exporter.contract.features import coverage_lines
from kvparity.exporter.contract.spec import ExportOptions, ModelSpec
from kvparity.runners.base import RunnerSpec
from kvparity.runners.compare.judge import JudgeOptions, judge
from kvparity.runners.report.report import Report
from tests.families import FAMILIES, Family, make_config, save_checkpoint, small_config

pytest.importorskip("torch", reason="the exporter's extra is not installed")

CASES = ("decode-far", "chunk-7", "batch-ragged", "batch-chunks")


def exported(family: Family, folder: Path) -> Bundle:
    from kvparity.exporter.checkpoint.source import resolve
    from kvparity.exporter.export import export
    from kvparity.runners.reference.record import record_cases

    checkpoint = resolve(str(save_checkpoint(make_config(family), folder / "hf")))
    return export(checkpoint, folder / "bundle", ExportOptions(), record=record_cases, limit=40, in_process=True)


def described(folder: Path) -> ModelSpec:
    from kvparity.exporter.checkpoint.model_spec import model_spec
    from kvparity.exporter.checkpoint.source import resolve

    checkpoint = resolve(str(folder))
    config = checkpoint.config()
    return model_spec(config, checkpoint.meta_model(config), "float32")


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
    from kvparity.exporter.model.layouts import dynamic

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
    make_config(family).save_pretrained(tmp_path)
    with pytest.raises(ExportError, match=family.refused):
        described(tmp_path)


def test_values_of_another_size_than_keys_have_their_own(tmp_path: Path) -> None:
    """MiMo V2 Flash: 192 columns of a key, 128 of a value; twice the heads where it slides."""
    make_config(next(family for family in FAMILIES if family.name == "mimo_v2_flash")).save_pretrained(tmp_path)
    sizes = [(slot.kv_heads, slot.head_dim, slot.value_head_dim) for slot in described(tmp_path).slots]
    assert sizes == [(4, 16, 12), (2, 16, 12), (4, 16, 12)]


@pytest.mark.parametrize(
    ("model_type", "refused"), [("llama", True), ("granite", True), ("mistral", False), ("llama without", False)]
)
def test_a_window_that_only_the_cache_heeds_is_refused(model_type: str, refused: bool, tmp_path: Path) -> None:
    kind = model_type.split()[0]
    small_config(kind, {} if "without" in model_type else {"sliding_window": 8}).save_pretrained(tmp_path)
    if refused:
        with pytest.raises(ExportError, match=r"remove sliding_window"):
            described(tmp_path)
    else:
        assert described(tmp_path).window == (8 if kind == "mistral" else None)


def test_a_layer_that_makes_a_mask_of_its_own_is_refused(tmp_path: Path) -> None:
    import torch

    from kvparity.exporter.model.attention import Masks, Spelling, _attention, use

    layer = torch.nn.Module()
    layer.layer_idx = 0
    rows = torch.zeros(1, 1, 2, 4)
    small_config("llama", {}).save_pretrained(tmp_path)
    masks = Masks(described(tmp_path), ExportOptions(), {0: torch.zeros(1, 1, 2, 2)})
    with use(masks, Spelling()), pytest.raises(ExportError, match="mask of its own"):
        _attention(layer, rows, rows, rows, torch.zeros(1, 1, 2, 2))


def test_values_are_named_by_the_layers_wherever_the_list_of_layers_is() -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from kvparity.exporter.contract.modules import decoder_stack

    for name, path in (("opt", "model.decoder"), ("llama", "model")):
        family = next(family for family in FAMILIES if family.name == name)
        model = AutoModelForCausalLM.from_config(make_config(family))
        assert decoder_stack(model)[0] is model.get_submodule(path)
    assert decoder_stack(torch.nn.Linear(2, 2))[1] == ""


def test_what_a_bundle_does_not_prove_names_the_window_that_no_case_reaches(tiny_bundle: Bundle) -> None:
    window = tiny_bundle.model.window
    assert window is not None
    assert "beyond the window" not in coverage_lines(tiny_bundle.model, [2 * window])[1]
    assert f"beyond the window of {window}" in coverage_lines(tiny_bundle.model, [window])[1]
    assert "mixture of experts" in coverage_lines(tiny_bundle.model, [2 * window])[1]


def test_inspect_says_what_a_checkpoint_exercises_and_what_it_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import cli

    small_config("llama").save_pretrained(tmp_path)
    assert cli.main(["inspect", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "exercises: full attention" in said
    assert "does not prove: sliding attention" in said
    small_config("recurrent_gemma").save_pretrained(tmp_path)
    assert cli.main(["inspect", str(tmp_path)]) == 2


def test_the_report_of_a_bundle_says_what_it_does_not_prove(tiny_bundle: Bundle) -> None:
    from kvparity.runners.report.markdown import markdown_report

    report = judge(tiny_bundle, JudgeOptions((RunnerSpec("ort", {"threads": "1"}),), ("prefill-1",)))
    assert "KV sharing" in report.bundle.not_proven
    assert "mixture of experts" in markdown_report(report)
