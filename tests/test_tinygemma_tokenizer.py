"""The byte-level tokenizer: special ids, no unknown text, the same merges for the same stories."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from kvparity.exporter.contract.errors import ExportError
from kvparity.exporter.tinygemma.config import VOCAB_SIZE
from kvparity.exporter.tinygemma.corpus import stories
from kvparity.exporter.tinygemma.options import TrainOptions
from kvparity.exporter.tinygemma.tokenizer import BOS, EOS, PAD, train_tokenizer

SHIPPED = Path(__file__).parents[1] / "artifacts" / "tinygemma4text3m"
TOKENIZER = PreTrainedTokenizerFast.from_pretrained(SHIPPED, subfolder="hf")


def test_special_tokens_have_the_cards_ids() -> None:
    assert (TOKENIZER.bos_token_id, TOKENIZER.eos_token_id, TOKENIZER.pad_token_id) == (0, 1, 2)
    assert TOKENIZER.convert_tokens_to_ids([BOS, EOS, PAD]) == [0, 1, 2]


def test_the_vocabulary_has_1024_entries() -> None:
    assert len(TOKENIZER) == VOCAB_SIZE == 1024
    assert sorted(TOKENIZER.get_vocab().values()) == list(range(1024))


def test_bos_comes_first_and_eos_is_not_added() -> None:
    ids = TOKENIZER("Once upon").input_ids
    assert ids[0] == 0
    assert not {0, 1, 2} & set(ids[1:])


def test_the_output_feeds_generate_as_it_is() -> None:
    assert set(TOKENIZER("Once upon", return_tensors="pt")) == {"input_ids", "attention_mask"}


def test_batches_are_padded_on_the_left_with_pad() -> None:
    batch = TOKENIZER(["Once", "Once upon a time"], padding=True)
    assert batch.input_ids[0][0] == 2
    assert batch.attention_mask[0][0] == 0
    assert batch.attention_mask[1] == [1] * len(batch.input_ids[1])


def test_auto_tokenizer_loads_the_same_thing() -> None:
    other = AutoTokenizer.from_pretrained(SHIPPED, subfolder="hf")
    assert other("Once upon a time").input_ids == TOKENIZER("Once upon a time").input_ids


@settings(deadline=None, max_examples=150)
@given(st.text().filter(lambda text: not any(token in text for token in (BOS, EOS, PAD))))
@example("")
@example("  two  spaces , and a\ttab\r\n")
@example("naïve 日本語 🙂👩‍👩‍👧 \x00 \u202e ﷽")
@example("it 's n't . don't")
def test_any_text_comes_back(text: str) -> None:
    ids = TOKENIZER(text).input_ids
    assert all(0 <= token < 1024 for token in ids)
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == text


def test_story_text_is_compressed() -> None:
    text = "\n".join(islice(stories(99), 200))
    assert len(text) / len(TOKENIZER(text).input_ids) > 3


def test_the_shipped_tokenizer_is_the_one_that_training_makes() -> None:
    options = TrainOptions()
    rebuilt = train_tokenizer(islice(stories(options.seed), options.tokenizer_stories))
    assert rebuilt.get_vocab() == TOKENIZER.get_vocab()
    assert rebuilt.encode("Once upon a time").ids == TOKENIZER("Once upon a time").input_ids


def test_too_few_stories_are_refused() -> None:
    with pytest.raises(ExportError, match="raise tokenizer_stories"):
        train_tokenizer(islice(stories(0), 2))
