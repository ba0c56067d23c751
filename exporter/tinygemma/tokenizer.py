"""A byte-level BPE tokenizer of 1,024 entries, trained on the stories.

Encoding puts `<bos>` in front, as Gemma's tokenizers do, in training and in use alike; `<eos>` is added by the training
only, behind each story. Any text comes back unchanged from `decode(encode(text), skip_special_tokens=True)`, unless it
spells one of the three special tokens, which are read as such.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from kvparity.exporter.contract.errors import ExportError
from kvparity.exporter.tinygemma.config import BOS_ID, EOS_ID, PAD_ID, VOCAB_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["BOS", "EOS", "PAD", "train_tokenizer", "wrap_tokenizer"]

BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Trains the tokenizer; the same texts give the same merges.

    Args:
        texts: Stories, enough of them to yield 765 merges beyond the 256 bytes and 3 special tokens.

    Returns:
        A tokenizer with `<bos>` 0, `<eos>` 1, `<pad>` 2 and every byte, so that no text is unknown.

    Raises:
        ExportError: If the texts are too few for the vocabulary.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, BOS_ID)]),
        ]
    )
    ids = [tokenizer.token_to_id(token) for token in (BOS, EOS, PAD)]
    if tokenizer.get_vocab_size() != VOCAB_SIZE or ids != [BOS_ID, EOS_ID, PAD_ID]:
        raise ExportError(
            f"train: the tokenizer has {tokenizer.get_vocab_size()} entries and special ids {ids}, expected "
            f"{VOCAB_SIZE} and {[BOS_ID, EOS_ID, PAD_ID]}: raise tokenizer_stories"
        )
    return tokenizer


def wrap_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers loads it; it returns `input_ids` and `attention_mask`, what `generate()` takes."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="left",
    )
