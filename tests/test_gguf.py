"""GGUF files are read a block at a time, and give what transformers gives when it loads them whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvparity.exporter.checkpoint.gguf_file import read_gguf
from kvparity.exporter.checkpoint.source import Checkpoint, read_safetensors_header, resolve
from kvparity.exporter.checkpoint.weights import place_weights
from kvparity.exporter.contract.placement import Placement

VOCAB, HIDDEN, HEADS, KV_HEADS, INNER, LAYERS = 96, 64, 4, 2, 96, 2


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama as llama.cpp writes it: quantised matrices, float32 norms, a vocabulary."""
    import gguf

    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{index}" for index in range(VOCAB)])
    writer.add_token_scores([0.0] * VOCAB)
    writer.add_bos_token_id(1)
    rng = np.random.default_rng(0)

    def add(name: str, *shape: int, quantised: bool = True) -> None:
        array = rng.standard_normal(shape, np.float32)
        if quantised:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)

    add("token_embd.weight", VOCAB, HIDDEN)
    add("output_norm.weight", HIDDEN, quantised=False)
    for layer in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            add(f"blk.{layer}.{name}.weight", HIDDEN, quantised=False)
        add(f"blk.{layer}.attn_q.weight", HIDDEN, HIDDEN)
        add(f"blk.{layer}.attn_k.weight", HIDDEN // HEADS * KV_HEADS, HIDDEN)
        add(f"blk.{layer}.attn_v.weight", HIDDEN // HEADS * KV_HEADS, HIDDEN)
        add(f"blk.{layer}.attn_output.weight", HIDDEN, HIDDEN)
        add(f"blk.{layer}.ffn_gate.weight", INNER, HIDDEN)
        add(f"blk.{layer}.ffn_up.weight", INNER, HIDDEN)
        add(f"blk.{layer}.ffn_down.weight", HIDDEN, INNER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _placed(checkpoint: Checkpoint, folder: Path, dtype: str) -> dict[str, np.ndarray[Any, Any]]:
    meta_model = checkpoint.meta_model(checkpoint.config(), dtype)
    places = place_weights(checkpoint, meta_model, folder)
    return {name: _read(folder, place) for name, place in places.items()}


def _read(folder: Path, place: Placement) -> np.ndarray[Any, Any]:
    data = np.fromfile(folder / place.location, np.uint8, place.length, offset=place.offset)
    return data.view(np.dtype(place.dtype)).reshape(place.shape)


@pytest.mark.parametrize("block", [1 << 22, 1 << 8])
def test_every_tensor_is_what_transformers_loads(
    gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    import torch

    monkeypatch.setattr("kvparity.exporter.checkpoint.gguf_tensors._BLOCK", block)
    checkpoint = resolve(str(gguf_file))
    monkeypatch.setattr(Checkpoint, "load", _forbidden)
    placed = _placed(checkpoint, tmp_path, "float32")
    monkeypatch.undo()
    loaded = checkpoint.load(torch.float32).state_dict()
    assert placed.keys() == loaded.keys() - {"lm_head.weight"}
    assert all(np.array_equal(array, loaded[name].numpy()) for name, array in placed.items())


def test_conversion_rounds_as_transformers_does(gguf_file: Path, tmp_path: Path) -> None:
    import torch

    checkpoint = resolve(str(gguf_file))
    placed = _placed(checkpoint, tmp_path, "float16")
    loaded = checkpoint.load(torch.float16).state_dict()
    assert all(np.array_equal(array, loaded[name].numpy()) for name, array in placed.items())


def _forbidden(*_: Any) -> None:
    raise AssertionError("the whole model was loaded")


def test_tensors_are_where_gguf_finds_them(gguf_file: Path) -> None:
    import gguf

    found = read_gguf(gguf_file).tensors
    for tensor in gguf.GGUFReader(gguf_file).tensors:
        assert np.array_equal(found[tensor.name].rows, tensor.data)
        assert found[tensor.name].kind == tensor.tensor_type


def test_a_wrong_size_is_refused(gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kvparity.exporter.checkpoint import weight_names, weights
    from kvparity.exporter.contract.errors import ExportError

    names = weight_names.weight_names
    monkeypatch.setattr(weights, "weight_names", lambda meta_model: tuple(_longer(name) for name in names(meta_model)))
    with pytest.raises(ExportError, match=r"elements, expected shape|has shape"):
        _placed(resolve(str(gguf_file)), tmp_path, "float32")


def _longer(weight: Any) -> Any:
    return replace(weight, shape=(weight.shape[0] + 1, *weight.shape[1:]))


def test_the_file_is_a_safetensors_file(gguf_file: Path, tmp_path: Path) -> None:
    _placed(resolve(str(gguf_file)), tmp_path, "float32")
    assert len(read_safetensors_header(tmp_path / "model.safetensors")) == 2 + 9 * LAYERS


def test_a_tokenizer_whose_type_transformers_does_not_know_is_taken_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    from kvparity.exporter.checkpoint.source import Checkpoint
    from kvparity.exporter.checkpoint.tokenizer import copy_tokenizer

    class Taken:
        def save_pretrained(self, folder: Path) -> None:
            (folder / "tokenizer.json").write_text("{}", encoding="utf-8")

    def known(*_: object, gguf_file: str, tokenizer_type: str | None = None, **others: object) -> Taken:
        assert others == {"trust_remote_code": False, "local_files_only": True}
        if tokenizer_type is not None:
            raise ValueError(f"Passed `tokenizer_type` {tokenizer_type} does not exist.")
        return Taken()

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", known)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    copy_tokenizer(Checkpoint("x", None, tmp_path, gguf="x.gguf"), tmp_path)
    assert (tmp_path / "tokenizer.json").is_file()
