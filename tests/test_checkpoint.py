"""Checkpoints as they lie about: what transformers loads is what is exported, or one line says why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from kvparity.exporter.checkpoint.inspect_checkpoint import inspect_checkpoint
from kvparity.exporter.checkpoint.source import resolve
from kvparity.exporter.checkpoint.weights import place_weights
from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.errors import BundleError, ExportError
from kvparity.exporter.contract.spec import ExportOptions
from kvparity.exporter.export import Stage, export
from kvparity.runners.reference.origin import find_checkpoint
from kvparity.runners.reference.record import recorder
from tests.families import save_checkpoint, small_config
from tests.plain_judge import largest_difference

CLOSE = 1e-5
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def _llama(folder: Path, seed: int = 0, **settings: Any) -> Path:
    return save_checkpoint(small_config("llama", {"num_hidden_layers": 1, **settings}), folder, seed)


def _export(checkpoint: Path, target: Path, **options: Any) -> Bundle:
    return export(resolve(str(checkpoint)), target, ExportOptions(**options), in_process=True)


def _load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def _change(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@pytest.fixture(scope="module")
def stale(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint whose config ties a head that the file holds with other values, and its bundle."""
    folder = tmp_path_factory.mktemp("stale")
    _change(_llama(folder / "hf", tie_word_embeddings=False), tie_word_embeddings=True)
    _export(folder / "hf", folder / "bundle")
    return folder / "hf", folder / "bundle"


def test_a_head_that_differs_from_the_embedding_is_kept_whatever_the_config_says(stale: tuple[Path, Path]) -> None:
    checkpoint, bundle = stale
    assert largest_difference(bundle, _load(checkpoint)) < CLOSE


def test_the_bundles_own_folder_loads_as_the_model_of_its_graphs(stale: tuple[Path, Path]) -> None:
    bundle = stale[1]
    assert json.loads((bundle / "config.json").read_text())["tie_word_embeddings"] is False
    assert largest_difference(bundle, _load(bundle)) < CLOSE


def test_a_stored_head_that_equals_the_embedding_is_tied(tmp_path: Path) -> None:
    _llama(tmp_path / "hf", tie_word_embeddings=True)
    weights = load_file(tmp_path / "hf" / WEIGHTS)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, tmp_path / "hf" / WEIGHTS, metadata={"format": "pt"})
    bundle = _export(tmp_path / "hf", tmp_path / "bundle")
    assert bundle.model.tied_embeddings
    assert largest_difference(bundle.root, _load(tmp_path / "hf")) < CLOSE


def test_model_safetensors_goes_before_an_index_as_in_transformers(tmp_path: Path) -> None:
    old, new = load_file(_llama(tmp_path / "old", 1) / WEIGHTS), _llama(tmp_path / "hf", 2)
    save_file(old, new / "old.safetensors", metadata={"format": "pt"})
    (new / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(old, "old.safetensors")}))
    bundle = _export(new, tmp_path / "bundle")
    assert largest_difference(bundle.root, _load(new)) < CLOSE
    (new / "old.safetensors").unlink()  # shards that are gone stop nobody
    read = _export(new, tmp_path / "again").manifest.checkpoint
    assert read is not None
    assert {entry.path for entry in read.files} == {
        "config.json",
        WEIGHTS,
    }


def test_shards_are_taken_with_an_index_so_that_the_bundle_is_a_model_folder(tmp_path: Path) -> None:
    weights = load_file(_llama(tmp_path / "hf", 1) / WEIGHTS)
    (tmp_path / "hf" / WEIGHTS).unlink()
    files = {name: f"{'ab'[number % 2]}.safetensors" for number, name in enumerate(sorted(weights))}
    for file in {*files.values()}:
        held = {name: weights[name] for name in weights if files[name] == file}
        save_file(held, tmp_path / "hf" / file, metadata={"format": "pt"})
    (tmp_path / "hf" / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))
    checkpoint, folder = resolve(str(tmp_path / "hf")), tmp_path / "bundle"
    config = checkpoint.config()
    config.save_pretrained(folder)
    place_weights(checkpoint, checkpoint.meta_model(config), folder)
    loaded = _load(folder).state_dict()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


@pytest.mark.parametrize(("outer", "inner"), [(True, False), (False, True)])
def test_a_multimodal_model_ties_by_its_own_config(tmp_path: Path, outer: bool, inner: bool) -> None:
    from transformers import AutoModelForImageTextToText, Mistral3Config

    text = small_config("mistral", {"num_hidden_layers": 1, "tie_word_embeddings": inner})
    vision = {"model_type": "pixtral", "hidden_size": 32, "head_dim": 16, "intermediate_size": 48}
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = Mistral3Config(text_config=text.to_dict(), vision_config={**vision, **sizes}, tie_word_embeddings=outer)
    save_checkpoint(config, tmp_path / "hf")
    bundle = _export(tmp_path / "hf", tmp_path / "bundle")
    assert bundle.model.tied_embeddings is outer
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    assert largest_difference(bundle.root, model) < CLOSE


def test_half_types_keep_in_float32_what_transformers_keeps(tmp_path: Path) -> None:
    settings = {"num_hidden_layers": 2, "moe_num_experts": 8, "moe_k": 2, "moe_intermediate_size": 24}
    checkpoint = save_checkpoint(small_config("ernie4_5_moe", settings), tmp_path / "hf", dtype="float16")
    weights = load_file(checkpoint / WEIGHTS)
    random = torch.Generator().manual_seed(1)
    for name, tensor in weights.items():
        if "e_score_correction_bias" in name:
            weights[name] = 9 + 0.003 * torch.randn(tensor.shape, generator=random)
        elif name.endswith("mlp.gate.weight"):
            weights[name] = torch.randn(tensor.shape, generator=random) / 300
    save_file(weights, checkpoint / WEIGHTS, metadata={"format": "pt"})
    bundle = _export(checkpoint, tmp_path / "bundle", dtype="float16")
    stored = {name: str(tensor.dtype) for name, tensor in load_file(bundle.root / WEIGHTS).items()}
    routers = {dtype for name, dtype in stored.items() if "gate.weight" in name or "correction_bias" in name}
    assert routers == {"torch.float32"}
    assert stored["model.embed_tokens.weight"] == "torch.float16"
    assert largest_difference(bundle.root, _load(checkpoint)) < 0.02


def test_a_number_beyond_float16_is_refused_by_name(tmp_path: Path) -> None:
    checkpoint = _llama(tmp_path / "hf")
    weights = load_file(checkpoint / WEIGHTS)
    weights["model.layers.0.mlp.up_proj.weight"][3, 3] = 70000.0
    save_file(weights, checkpoint / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ExportError, match=r"up_proj.weight holds 70,000, beyond float16's .* --dtype bfloat16"):
        _export(checkpoint, tmp_path / "bundle", dtype="float16")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pytorch_model.bin", "pytorch_model.bin is a pickle"),
        ("model.fp16.safetensors", "model.fp16.safetensors is a variant"),
        ("consolidated.safetensors", "transformers does not read consolidated.safetensors"),
    ],
)
def test_other_weights_than_transformers_reads_are_named(tmp_path: Path, name: str, words: str) -> None:
    checkpoint = _llama(tmp_path / "hf")
    (checkpoint / WEIGHTS).rename(checkpoint / name)
    with pytest.raises(ExportError, match=words):
        _export(checkpoint, tmp_path / "bundle")


def test_an_adapter_beside_a_model_is_refused(tmp_path: Path) -> None:
    checkpoint = _llama(tmp_path / "hf")
    (checkpoint / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')
    with pytest.raises(ExportError, match=r"lies beside the model, an adapter of owner/base, .* --adapter"):
        resolve(str(checkpoint))


@pytest.mark.parametrize("known", [True, False])
def test_code_of_the_checkpoint_is_never_run(tmp_path: Path, known: bool) -> None:
    checkpoint = _llama(tmp_path / "hf")
    (checkpoint / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    names = {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"}
    _change(checkpoint, auto_map=names, model_type="llama" if known else "theirs")
    if known:
        stages: list[Stage] = []
        chosen = resolve(str(checkpoint))
        bundle = export(chosen, tmp_path / "bundle", ExportOptions(), in_process=True, report=stages.append)
        assert "Python code of the checkpoint's own (auto_map), which is not run" in stages[0].note
        assert bundle.model.architecture == "LlamaForCausalLM"
        assert "auto_map" not in json.loads((bundle.root / "config.json").read_text())
    else:
        with pytest.raises(ExportError, match=r"'theirs' is not one of transformers' own.*never run"):
            _export(checkpoint, tmp_path / "bundle")
        with pytest.raises(ExportError, match=r"'theirs' is not one of transformers' own.*never run"):
            inspect_checkpoint(checkpoint)
    assert not (tmp_path / "ran").exists()


def test_a_bundle_finds_its_checkpoint_and_knows_when_it_changed(stale: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, root = stale
    bundle = Bundle.open(root)
    found = find_checkpoint(bundle)
    assert found.checkpoint is not None
    assert found.checkpoint.folder.samefile(checkpoint)
    assert str(checkpoint.parent) not in (root / "manifest.json").read_text()
    other = _llama(tmp_path / "other")
    with pytest.raises(BundleError, match=r"not the checkpoint of this bundle: config.json differs"):
        find_checkpoint(bundle, other)
    before = (checkpoint / "config.json").read_bytes()
    try:
        _change(checkpoint, rope_theta=5.0)
        assert find_checkpoint(bundle).checkpoint is None
        assert "config.json of its checkpoint has changed" in find_checkpoint(bundle).sentence
    finally:
        (checkpoint / "config.json").write_bytes(before)


@pytest.mark.parametrize(
    "ids",
    [
        {"pad_token_id": -1, "bos_token_id": 500_000, "eos_token_id": [2, -1, 500_000]},
        {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None, "return_dict": False, "use_cache": False},
    ],
)
def test_special_tokens_outside_the_vocabulary_are_none_as_transformers_has_it(
    tmp_path: Path, ids: dict[str, Any]
) -> None:
    checkpoint = _llama(tmp_path / "hf")
    _change(checkpoint, **ids)
    (checkpoint / "generation_config.json").unlink(missing_ok=True)
    record = recorder(float64=False, budget_mb=None, on_sequence=lambda *_: None)
    source = resolve(str(checkpoint))
    bundle = export(source, tmp_path / "bundle", ExportOptions(), in_process=True, record=record, limit=40)
    model = bundle.model
    assert (model.pad_token_id, model.bos_token_id) == (None, None)
    assert model.eos_token_ids == ((2,) if ids["eos_token_id"] else ())
    for entry in bundle.manifest.cases:
        tokens = bundle.case(entry.name).tokens
        assert tokens.min() >= 0
        assert tokens.max() < model.vocab_size
    _change(checkpoint, return_dict=True)
    assert largest_difference(bundle.root, _load(checkpoint)) < CLOSE


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("llama", {"pad_token_id": 500_000}, r"pad_token_id is 500000, the vocabulary \d+\)"),
        ("llama", {"eos_token_id": [2, None]}, r"cannot be read \(Field 'eos_token_id' .*Invalid item at index 1"),
        ("llama", {"layer_types": ["full_attention"] * 3}, r"\(`num_hidden_layers` \(1\) must be equal to .*\(3\)\)"),
        ("gemma3_text", {"layer_types": ["local"]}, r"\(The `layer_types` entries must be in \('full_attention'"),
        ("qwen3", {"layer_types": ["conv"]}, "layer_types calls layer 0 a conv, and it keeps keys and values"),
        ("mistral", {"sliding_window": 0}, "sliding_window=0 in layer 0"),
        ("mistral", {"sliding_window": 1}, "sliding_window=1 in layer 0"),
        ("mistral", {"sliding_window": -1}, "sliding_window=-1 in layer 0"),
        (
            "gemma3_text",
            {"sliding_window": None, "layer_types": ["sliding_attention"]},
            "cannot make a cache for this config: layer 0 is sliding_attention, and sliding_window is None",
        ),
    ],
)
def test_a_config_that_transformers_does_not_run_is_refused_with_the_reason_in_one_line(
    tmp_path: Path, kind: str, settings: dict[str, Any], words: str
) -> None:
    checkpoint = save_checkpoint(small_config(kind, {"num_hidden_layers": 1}), tmp_path / "hf")
    _change(checkpoint, **settings)
    with pytest.raises(ExportError, match=words) as caught:
        inspect_checkpoint(checkpoint)
    assert "\n" not in str(caught.value)
    assert "alidation error for" not in str(caught.value)
