"""Every key and tensor of a GGUF file is heeded or refused by name; what is right is the model that it was made of."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvparity.exporter.checkpoint.source import Checkpoint, resolve
from kvparity.exporter.checkpoint.weights import place_weights
from kvparity.exporter.contract.errors import ExportError
from tests.gguf_models import MODELS, YARN, GgufModel, make_model, write_gguf

NAMES = list(MODELS)
IDS = np.random.default_rng(5).integers(3, 90, (1, 40))


def logits(model: Any) -> np.ndarray[Any, Any]:
    import torch

    with torch.no_grad():
        return np.asarray(model(input_ids=torch.tensor(IDS), use_cache=False).logits)


def loaded(checkpoint: Checkpoint) -> np.ndarray[Any, Any]:
    import torch

    return logits(checkpoint.load(torch.float32))


@pytest.mark.parametrize("name", NAMES)
def test_a_file_gives_the_model_that_it_was_made_of(tmp_path: Path, name: str) -> None:
    row = MODELS[name]
    model = make_model(row)
    checkpoint = resolve(str(write_gguf(row, model, tmp_path / "m.gguf")))
    assert np.abs(loaded(checkpoint) - logits(model)).max() < 1e-5 * np.abs(logits(model)).max()
    for left_out in row.heeds:
        other = resolve(str(write_gguf(row, model, tmp_path / "o.gguf", without=left_out)))
        assert np.abs(loaded(other) - logits(model)).max() > 1e-3, left_out


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "gpt2", "starcoder2", "nemotron"])
def test_tensors_are_placed_as_they_are_loaded(tmp_path: Path, name: str) -> None:
    row = MODELS[name]
    model = make_model(row)
    checkpoint = resolve(str(write_gguf(row, model, tmp_path / "m.gguf")))
    places = place_weights(checkpoint, checkpoint.meta_model(checkpoint.config()), tmp_path)
    for weight, place in places.items():
        data = np.fromfile(tmp_path / place.location, np.float32, place.length // 4, offset=place.offset)
        assert np.abs(data.reshape(place.shape) - model.state_dict()[weight].numpy()).max() < 1e-6, weight


UNKNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "scaling of another type": ("llama", {"rope.scaling.type": "su", "rope.scaling.factor": 2.0}),
    "yarn extrapolation": ("llama", {**YARN, "rope.scaling.yarn_ext_factor": 0.5}),
    "yarn logarithm": ("qwen2", {**YARN, "rope.scaling.yarn_log_multiplier": 0.1}),
    "attention factor without yarn": ("llama", {"rope.scaling.attn_factor": 1.2}),
    "fewer rotated": ("llama", {"rope.dimension_count": 8}),
    "experts of Mixtral": ("llama", {"expert_count": 8, "expert_used_count": 2}),
    "window": ("qwen2", {"attention.sliding_window": 8}),
    "logit scale": ("llama", {"logit_scale": 0.5}),
    "embedding scale": ("qwen3", {"embedding_scale": 12.0}),
    "residual scale": ("llama", {"residual_scale": 0.2}),
    "attention scale": ("llama", {"attention.scale": 0.1}),
    "not causal": ("qwen3", {"attention.causal": False}),
    "clamped": ("llama", {"attention.clamp_kqv": 8.0}),
    "softcap": ("qwen2", {"final_logit_softcapping": 30.0}),
    "values of another size": ("llama", {"attention.value_length": 24}),
    "layers that differ": ("llama", {"attention.head_count_kv": [2, 2, 1]}),
    "something new": ("gemma2", {"attention.something_new": 1}),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_cannot_be_heeded_is_refused_by_name(tmp_path: Path, case: str) -> None:
    name, keys = UNKNOWN[case]
    row = MODELS[name]
    path = write_gguf(row, make_model(row), tmp_path / "m.gguf", extra=keys)
    with pytest.raises(ExportError) as found:
        resolve(str(path)).config()
    text = str(found.value)
    assert any(key in text for key in keys)
    assert text.startswith("m.gguf: ")
    assert "\n" not in text


@pytest.mark.parametrize("name", ["rope_freqs.weight", "rope_factors_long.weight", "blk.0.attn_sinks.weight"])
def test_tensors_that_nobody_reads_are_refused_by_name(tmp_path: Path, name: str) -> None:
    row = GgufModel("qwen3", "qwen3", tensors={name: np.array([1, 2, 1, 2, 1, 9, 3, 1], np.float32)})
    checkpoint = resolve(str(write_gguf(row, make_model(row), tmp_path / "m.gguf")))
    with pytest.raises(ExportError, match=name):
        place_weights(checkpoint, checkpoint.meta_model(checkpoint.config()), tmp_path)


@pytest.mark.parametrize(
    "key",
    ["block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
     "attention.layer_norm_rms_epsilon"],
)  # fmt: skip
def test_a_file_without_a_size_is_refused_and_no_default_is_taken(tmp_path: Path, key: str) -> None:
    row = MODELS["llama"]
    path = write_gguf(row, make_model(row), tmp_path / "m.gguf", without=key)
    with pytest.raises(ExportError, match=f"lacks llama.{key}"):
        resolve(str(path)).config()


def test_keys_that_may_be_left_out_have_llama_cpp_s_defaults(tmp_path: Path) -> None:
    row = GgufModel("llama", "llama", {"num_key_value_heads": 4, "head_dim": 8})
    model = make_model(row)
    for key in ("attention.head_count_kv", "rope.dimension_count", "rope.freq_base", "attention.key_length"):
        checkpoint = resolve(str(write_gguf(row, model, tmp_path / "m.gguf", without=key)))
        config = checkpoint.config()
        assert (config.num_key_value_heads, config.head_dim, config.rope_parameters["rope_theta"]) == (4, 8, 10000.0)


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_alignment_is_heeded(tmp_path: Path, alignment: int) -> None:
    row = MODELS["qwen3"]
    model = make_model(row)
    checkpoint = resolve(str(write_gguf(row, model, tmp_path / "m.gguf", alignment=alignment)))
    places = place_weights(checkpoint, checkpoint.meta_model(checkpoint.config()), tmp_path)
    place = places["model.embed_tokens.weight"]
    data = np.fromfile(tmp_path / place.location, np.float32, place.length // 4, offset=place.offset)
    assert np.array_equal(data.reshape(place.shape), model.state_dict()["model.embed_tokens.weight"].numpy())


def test_a_missing_tensor_is_named_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoint, "load", None)
    for name in ("qwen3", "qwen3moe"):
        row = MODELS[name]
        path = write_gguf(row, make_model(row), tmp_path / "m.gguf", without="blk.1.attn_k.weight")
        checkpoint = resolve(str(path))
        with pytest.raises(ExportError, match=r"no tensor for model.layers.1.self_attn.k_proj.weight \(1 missing"):
            place_weights(checkpoint, checkpoint.meta_model(checkpoint.config()), tmp_path)


def test_parts_of_a_split_file_are_refused_with_the_way_to_join_them(tmp_path: Path) -> None:
    row = MODELS["llama"]
    for number in (0, 1):
        path = tmp_path / f"m-{number + 1:05}-of-00002.gguf"
        _write_part(row, path, number)
        with pytest.raises(ExportError, match=r"part . of a GGUF file in 2 parts.*--merge m-00001-of-00002.gguf"):
            resolve(str(path)).config()


def _write_part(row: GgufModel, path: Path, number: int) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, row.architecture)
    writer.add_uint16("split.no", number)
    writer.add_uint16("split.count", 2)
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("architecture", ["gemma", "mamba", "clip", "no such"])
def test_an_architecture_that_is_not_read_is_refused(tmp_path: Path, architecture: str) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "m.gguf", architecture)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ExportError, match=f"the architecture '{architecture}' are not read"):
        resolve(str(tmp_path / "m.gguf")).config()


def test_damage_is_one_line(tmp_path: Path) -> None:
    row = MODELS["llama"]
    whole = write_gguf(row, make_model(row), tmp_path / "m.gguf").read_bytes()
    random = np.random.default_rng(0)
    damaged = [whole[:size] for size in (0, 3, 20, 30, 100, 400, len(whole) // 2, len(whole) - 200)]
    damaged += [b"GGML" + whole[4:], whole[:4] + b"\0\0\0\3" + whole[8:], whole[:8] + b"\xff" * 8 + whole[16:]]
    for _ in range(60):
        data = bytearray(whole)
        data[int(random.integers(8, 3000))] = int(random.integers(256))
        damaged.append(bytes(data))
    refused = [text for text in map(partial(_refusal, tmp_path), damaged) if text]
    assert len(refused) >= 11
    assert all("\n" not in text and len(text) < 600 for text in refused)


def _refusal(folder: Path, data: bytes) -> str:
    (folder / "d.gguf").write_bytes(data)
    try:
        checkpoint = resolve(str(folder / "d.gguf"))
        place_weights(checkpoint, checkpoint.meta_model(checkpoint.config()), folder)
    except ExportError as error:
        return str(error)
    return ""
