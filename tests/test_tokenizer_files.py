"""Tokenizers as they lie about: the same ids as transformers', in `run`, in the bundle and in both packages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kvparity.exporter.checkpoint.source import Checkpoint
from kvparity.exporter.checkpoint.tokenizer import copy_tokenizer, sample_text
from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.errors import BundleError
from kvparity.exporter.contract.model_files import open_tokenizer, unlimit_tokenizer
from tests.packaging_bundles import TINY

TEXT = "once upon a time there was a little bird that sang in the tree"


def trained(**special: str) -> Any:
    """A byte-level BPE tokenizer of a few words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(special.values()), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT] * 9, trainer)
    return tokenizer


def taken(source: Path, target: Path) -> str:
    target.mkdir()
    return copy_tokenizer(Checkpoint("m", None, source), target)


def theirs(folder: Path, text: str = TEXT) -> list[int]:
    from transformers import AutoTokenizer

    return list(AutoTokenizer.from_pretrained(folder)(text).input_ids)


def ours(folder: Path, text: str = TEXT) -> list[int]:
    return list(open_tokenizer(folder / "tokenizer.json").encode(text).ids)


@pytest.fixture
def limited(tmp_path: Path) -> Path:
    """A checkpoint's tokenizer as training leaves it: six tokens at most, padded to 24."""
    folder = tmp_path / "hf"
    folder.mkdir()
    tokenizer = trained(pad="<pad>", bos="<s>")
    tokenizer.enable_truncation(6)
    tokenizer.enable_padding(length=24, pad_id=0, pad_token="<pad>")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}', encoding="utf-8")
    return folder


def test_truncation_and_padding_are_not_taken_along(limited: Path, tmp_path: Path) -> None:
    assert ours(limited) == theirs(limited)
    assert len(ours(limited)) > 6
    assert taken(limited, tmp_path / "b") == ""
    data = json.loads((tmp_path / "b" / "tokenizer.json").read_text("utf-8"))
    assert (data["truncation"], data["padding"]) == (None, None)
    assert json.loads((tmp_path / "b" / "tokenizer_config.json").read_text("utf-8"))["pad_token"] == "<pad>"
    assert ours(tmp_path / "b") == theirs(limited)
    assert sample_text(tmp_path / "b", 9, text=TEXT) == tuple(theirs(limited))
    whole = json.loads((limited / "tokenizer.json").read_text("utf-8"))
    assert {**data, "truncation": 0, "padding": 0} == {**whole, "truncation": 0, "padding": 0}


def test_packages_have_neither(limited: Path, tmp_path: Path) -> None:
    from kvparity.exporter.contract.package import write_package
    from tests.packaging_bundles import checkpoint, export_to

    bundle = export_to(checkpoint("llama", tmp_path / "llama"), tmp_path / "b")
    shutil.copyfile(limited / "tokenizer.json", bundle.root / "tokenizer.json")  # as older exports have it
    for tool in ("genai", "transformersjs"):
        write_package(bundle, tool, tmp_path / tool)
        data = json.loads((tmp_path / tool / "tokenizer.json").read_text("utf-8"))
        assert (data["truncation"], data["padding"]) == (None, None)
    assert json.loads((bundle.root / "tokenizer.json").read_text("utf-8"))["truncation"]


def test_a_tokenizer_without_limits_stays_as_it_is(tmp_path: Path) -> None:
    shutil.copyfile(TINY / "tokenizer.json", tmp_path / "tokenizer.json")
    unlimit_tokenizer(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (TINY / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "Qwen2Tokenizer"])
def test_vocabulary_and_merges_are_converted(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "hf"
    source.mkdir()
    trained(end="<|endoftext|>").model.save(str(source))  # vocab.json and merges.txt
    config = {"tokenizer_class": kind, "chat_template": "{{ eos_token }}{{ messages[0].content }}"}
    (source / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert taken(source, tmp_path / "b") == ""
    assert ours(tmp_path / "b") == theirs(source) == theirs(tmp_path / "b")
    from kvparity.runners.decode.chat import chat_prompt

    assert chat_prompt(tmp_path / "b", "x") == "<|endoftext|>x"


def test_a_token_that_only_the_class_knows_reaches_the_template(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from kvparity.runners.decode.chat import chat_prompt

    source = tmp_path / "hf"
    source.mkdir()
    trained(end="<|endoftext|>").save(str(source / "tokenizer.json"))
    config = {"tokenizer_class": "GPT2Tokenizer", "chat_template": "{{ bos_token }}|{{ pad_token }}", "eos_token": None}
    (source / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    taken(source, tmp_path / "b")
    message = [{"role": "user", "content": "x"}]
    expected = AutoTokenizer.from_pretrained(source).apply_chat_template(message, tokenize=False)
    assert chat_prompt(tmp_path / "b", "x") == expected == "<|endoftext|>|"


def test_a_sentencepiece_model_is_converted(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    source = tmp_path / "hf"
    source.mkdir()
    (tmp_path / "text").write_text(f"{TEXT}\n" * 9, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(source / "tokenizer"), vocab_size=60, model_type="bpe",
        byte_fallback=False, minloglevel=2,
    )  # fmt: skip
    (source / "tokenizer.vocab").unlink()
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}', encoding="utf-8")
    assert taken(source, tmp_path / "b") == ""
    assert ours(tmp_path / "b") == theirs(source) == theirs(tmp_path / "b")


@pytest.mark.parametrize("name", ["tokenizer.model", "tekken.json", "vocab.json"])
def test_a_vocabulary_that_cannot_be_converted_is_said_in_one_line(tmp_path: Path, name: str) -> None:
    source = tmp_path / "hf"
    source.mkdir()
    (source / name).write_bytes(b"no vocabulary")
    reason = taken(source, tmp_path / "b")
    assert reason.startswith(f"{name} cannot be converted to a tokenizer.json (")
    assert "\n" not in reason
    assert not (tmp_path / "b" / "tokenizer.json").is_file()


@pytest.mark.parametrize("template", ["3", "true", '["x"]', '[["a", "b"]]', '{"default": 1}'])
def test_chat_templates_that_are_none_are_one_line(tmp_path: Path, template: str) -> None:
    from kvparity.exporter.contract.chat_templates import chat_templates

    (tmp_path / "tokenizer_config.json").write_text(f'{{"chat_template": {template}}}', encoding="utf-8")
    with pytest.raises(BundleError, match="chat_template is neither a text nor a list of objects"):
        chat_templates(tmp_path)


def test_a_checkpoint_without_a_tokenizer_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    assert taken(tmp_path / "hf", tmp_path / "b") == ""


def test_a_damaged_tokenizer_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(BundleError, match="not a tokenizer that the tokenizers library reads") as found:
        open_tokenizer(tmp_path / "tokenizer.json")
    assert "\n" not in str(found.value)


def test_run_says_what_to_do_without_a_tokenizer(tmp_path: Path) -> None:
    from kvparity.runners.decode.generate import load_tokenizer

    with pytest.raises(BundleError, match=r"has no tokenizer.json.*export says why"):
        load_tokenizer(Bundle(tmp_path, None))  # type: ignore[arg-type]
