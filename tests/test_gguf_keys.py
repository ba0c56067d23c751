"""Every key and tensor of a GGUF file is heeded or refused by name; what is right is the model that it was made of."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvparity.exporter.checkpoint.gguf_file import read_gguf
from kvparity.exporter.checkpoint.source import Checkpoint, resolve
from kvparity.exporter.checkpoint.weights import place_weights
from kvparity.exporter.contract.errors import ExportError
from kvparity.exporter.export import origin
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


_SAID = {key: value for row in MODELS.values() for key, value in row.keys.items() if not isinstance(value, list)}
_SAID |= {key: value for _, keys in UNKNOWN.values() for key, value in keys.items() if not isinstance(value, list)}
_SAID |= {"rope.freq_base": 777.0, "attention.layer_norm_rms_epsilon": 0.3, "attention.layer_norm_epsilon": 0.3}


@pytest.mark.parametrize("number", range(20))
def test_a_key_that_another_model_s_file_has_is_heeded_or_refused_by_name(tmp_path: Path, number: int) -> None:
    random = np.random.default_rng(number)
    row = MODELS[NAMES[random.integers(len(NAMES))]]
    model = make_model(row)
    keys = sorted(_SAID.keys() - row.keys.keys())
    drawn = {key: _SAID[key] for key in random.choice(keys, 2, replace=False)}
    if any(key.startswith("rope.scaling.") for key in drawn):  # without a factor none of them says anything
        drawn = {"rope.scaling.factor": 4.0, **drawn}
    checkpoint = resolve(str(write_gguf(row, model, tmp_path / "m.gguf", extra=drawn)))
    try:
        found = loaded(checkpoint)
    except ExportError as error:
        said = str(error)
        assert f"{row.architecture}." in said or any(key in said for key in drawn), (drawn, said)
        return
    assert np.abs(found - logits(model)).max() > 1e-6, f"{drawn} of {row.architecture} changes nothing"


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


@pytest.mark.parametrize("name", ["llama", "lfm2"])  # transformers has a reader of its own for the latter
def test_a_file_in_parts_is_read_whole_whichever_part_is_named(tmp_path: Path, name: str) -> None:
    row = MODELS[name]
    model = make_model(row)
    write_gguf(row, model, tmp_path / "m.gguf", parts=4)
    parts = sorted(path.name for path in tmp_path.glob("*.gguf"))
    assert parts[0].startswith("m-00001-of-")
    for part in (parts[0], parts[-1]):
        checkpoint = resolve(str(tmp_path / part))
        assert checkpoint.gguf == parts[0]
        assert np.abs(loaded(checkpoint) - logits(model)).max() < 1e-5 * np.abs(logits(model)).max()
    places = place_weights(checkpoint, checkpoint.meta_model(checkpoint.config()), tmp_path)
    assert places.keys() == dict(model.named_parameters()).keys() - {"lm_head.weight"} or name == "llama"
    assert {file.path for file in origin(checkpoint, tmp_path / "bundle").files} == set(parts)


def test_parts_that_are_missing_or_of_another_file_are_named(tmp_path: Path) -> None:
    row = MODELS["llama"]
    write_gguf(row, make_model(row), tmp_path / "m.gguf", parts=4)
    parts = sorted(tmp_path.glob("m-*.gguf"))
    whole = parts[2].read_bytes()
    parts[2].write_bytes(parts[1].read_bytes())
    with pytest.raises(ExportError, match=rf"{parts[2].name}: not part 3 of {len(parts)} \(it says part 2 of"):
        resolve(str(parts[0])).config()
    parts[2].unlink()
    for part in (parts[0], parts[1]):
        with pytest.raises(ExportError, match=rf"1 of the {len(parts)} parts .* not beside it: {parts[2].name}; put"):
            resolve(str(part))
    (tmp_path / "other.gguf").write_bytes(whole)
    with pytest.raises(ExportError, match=r"found by name; call them other-00001-of-00004.gguf to other-00004-of"):
        resolve(str(tmp_path / "other.gguf"))


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_parts_whose_writer_did_not_say_how_they_are_aligned_are_refused_or_right(
    tmp_path: Path, alignment: int
) -> None:
    row = MODELS["llama"]
    model = make_model(row)
    write_gguf(row, model, tmp_path / "m.gguf", parts=4, alignment=alignment)
    try:
        tensors = read_gguf(tmp_path / "m-00001-of-00004.gguf").tensors
    except ExportError as error:
        said = str(error)
        assert "written with another general.alignment" in said or "ends at byte" in said
    else:
        assert np.array_equal(tensors["token_embd.weight"].rows, model.state_dict()["model.embed_tokens.weight"])


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
