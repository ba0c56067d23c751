"""``export --adapter``: what is exported is what transformers computes with the adapter, merged or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from kvparity.exporter.checkpoint.inspect_checkpoint import inspect_checkpoint, is_checkpoint
from kvparity.exporter.checkpoint.source import resolve
from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.errors import ExportError
from kvparity.exporter.contract.spec import ExportOptions
from kvparity.exporter.export import export
from kvparity.runners.reference.origin import find_checkpoint
from kvparity.runners.reference.record import recorder
from tests.families import save_checkpoint, small_config
from tests.plain_judge import largest_difference

CLOSE = 1e-5
WEIGHTS = "adapter_model.safetensors"


def _base(folder: Path, kind: str = "llama", **settings: Any) -> Path:
    return save_checkpoint(small_config(kind, {"num_hidden_layers": 1, **settings}), folder)


def _load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def _adapt(base: Path, folder: Path, rows: int | None = None, **settings: Any) -> Path:
    """An adapter whose every tensor is far from zero, saved by peft; ``rows`` enlarges the vocabulary first."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    model = _load(base)
    if rows is not None:
        model.resize_token_embeddings(rows)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape))
    adapted.save_pretrained(str(folder))
    return folder


def _unmerged(base: Path, adapter: Path, rows: int | None = None) -> Any:
    from peft import PeftModel

    model = _load(base)
    if rows is not None:
        model.resize_token_embeddings(rows)
    return PeftModel.from_pretrained(model, adapter).eval()


def _export(base: Path, adapter: Path, target: Path, record: Any = None) -> Bundle:
    checkpoint = resolve(str(base), adapter=adapter)
    return export(checkpoint, target, ExportOptions(), in_process=True, record=record, limit=12)


def test_ranks_and_scales_of_single_modules_are_heeded(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    base = _base(tmp_path / "base", tie_word_embeddings=False)
    patterns: dict[str, Any] = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 32}, "use_rslora": True}
    adapter = _adapt(base, tmp_path / "adapter", r=4, lora_alpha=6, target_modules="all-linear", **patterns)
    bundle = _export(base, adapter, tmp_path / "bundle")
    assert largest_difference(bundle.root, _unmerged(base, adapter)) < CLOSE
    assert largest_difference(bundle.root, _load(base)) > 1e-2  # the adapter matters
    assert not list(bundle.root.glob("adapter*"))


def test_a_head_of_its_own_unties_and_the_reference_is_the_checkpoint_with_the_adapter(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    base = _base(tmp_path / "base", tie_word_embeddings=True)
    adapter = _adapt(base, tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=["lm_head"])
    record = recorder(float64=True, budget_mb=None, on_sequence=lambda *_: None)
    bundle = _export(base, adapter, tmp_path / "bundle", record)
    assert not bundle.model.tied_embeddings
    assert largest_difference(bundle.root, _unmerged(base, adapter)) < CLOSE
    assert largest_difference(bundle.root, _load(bundle.root)) < CLOSE  # the folder is the same model
    found = find_checkpoint(Bundle.open(bundle.root))
    assert found.checkpoint is not None
    assert found.sentence.endswith("the adapter adapter merged")
    changed = load_file(adapter / WEIGHTS)
    save_file({name: tensor + 1 for name, tensor in changed.items()}, adapter / WEIGHTS)
    assert "of the adapter adapter is missing or has changed" in find_checkpoint(bundle).sentence


def test_an_embedding_that_is_adapted_leaves_a_tied_head_alone_and_new_tokens_are_there(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    base = _base(tmp_path / "base", tie_word_embeddings=True)
    rows = _load(base).config.vocab_size + 8
    adapter = _adapt(base, tmp_path / "adapter", rows, target_modules=["embed_tokens", "o_proj"])
    bundle = _export(base, adapter, tmp_path / "bundle")
    assert bundle.model.vocab_size == rows
    assert largest_difference(bundle.root, _unmerged(base, adapter, rows)) < CLOSE


def test_an_adapter_of_another_model_is_refused_by_its_tensor(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    deep, base = _base(tmp_path / "deep", num_hidden_layers=2), _base(tmp_path / "base")
    adapter = _adapt(deep, tmp_path / "adapter", target_modules=["q_proj"])
    with pytest.raises(ExportError, match=r"cannot be merged into base: the model has no place for .*layers\.1"):
        _export(base, adapter, tmp_path / "bundle")
    wide = _adapt(_base(tmp_path / "wide", hidden_size=48), tmp_path / "wider", target_modules=["q_proj"])
    with pytest.raises(ExportError, match=r"cannot be merged into base: size mismatch for .*q_proj"):
        _export(base, wide, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("settings", "files", "words"),
    [
        (None, (), "not an adapter, adapter_config.json is missing"),
        ({"peft_type": "IA3"}, (WEIGHTS,), "an adapter of kind IA3; expected LoRA"),
        ({"peft_type": "PROMPT_TUNING"}, (WEIGHTS,), "an adapter of kind PROMPT_TUNING; expected LoRA"),
        ({"peft_type": "LORA", "use_dora": True}, (WEIGHTS,), "an adapter of kind DoRA; expected LoRA"),
        ({}, (WEIGHTS,), "an adapter of kind nameless"),
        ({"peft_type": "LORA"}, (), r"an adapter without adapter_model.safetensors$"),
        ({"peft_type": "LORA"}, ("adapter_model.bin",), "adapter_model.bin is a pickle"),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(
    tmp_path: Path, settings: dict[str, Any] | None, files: tuple[str, ...], words: str
) -> None:
    if settings is not None:
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    for name in files:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ExportError, match=words):
        resolve("base", adapter=tmp_path)


def test_without_peft_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / WEIGHTS).write_bytes(b"")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"needs peft, which is not installed; pip install"):
        resolve("base", adapter=tmp_path)


def test_a_folder_with_an_adapter_alone_is_told_of_the_option(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')
    assert is_checkpoint(tmp_path)
    for read in (resolve, lambda path: inspect_checkpoint(Path(path))):
        with pytest.raises(ExportError, match=r"an adapter of owner/base, not a model; .* --adapter"):
            read(str(tmp_path))
