"""The shipped checkpoint: trained, readable, varied, with healthy logits."""

from __future__ import annotations

import csv
import re
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import Gemma4ForCausalLM, PreTrainedTokenizerFast

from kvparity.exporter.tinygemma.config import LAYER_SCALARS
from kvparity.exporter.tinygemma.corpus import stories, words
from kvparity.exporter.tinygemma.grammar import CREATURES, WORDS
from kvparity.exporter.tinygemma.options import TrainOptions

SHIPPED = Path(__file__).parents[1] / "artifacts" / "tinygemma4text3m"
UNSEEN = 424_242
TOKENIZER = PreTrainedTokenizerFast.from_pretrained(SHIPPED, subfolder="hf")


@pytest.fixture(scope="module")
def model() -> Gemma4ForCausalLM:
    return Gemma4ForCausalLM.from_pretrained(SHIPPED, subfolder="hf", dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def vocabulary() -> set[str]:
    return {word for story in islice(stories(0), 3000) for word in words(story)}


def generate(model: Gemma4ForCausalLM, prompt: str, **options: object) -> list[str]:
    """Texts of 80 new tokens, prompt included."""
    inputs = TOKENIZER(prompt, return_tensors="pt")
    outputs = model.generate(**inputs, max_new_tokens=80, **options)
    return [TOKENIZER.decode(output, skip_special_tokens=True) for output in outputs]


def logits(model: Gemma4ForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def test_once_upon_continues_as_a_readable_story(model: Gemma4ForCausalLM, vocabulary: set[str]) -> None:
    (text,) = generate(model, "Once upon", do_sample=False)
    told = words(text)
    assert text.startswith("Once upon a time")
    assert len(told) >= 50
    assert [word for word in told[:-1] if word not in vocabulary] == []
    assert text.count(".") >= 4
    trigrams = list(zip(told, told[1:], told[2:], strict=False))
    assert len(set(trigrams)) > 0.8 * len(trigrams), "it goes round in circles"


def test_greedy_stories_stay_readable_from_other_beginnings(model: Gemma4ForCausalLM, vocabulary: set[str]) -> None:
    for prompt in ("One day, a brave boy named", "In a little town lived a", '"I am lost," said'):
        told = words(generate(model, prompt, do_sample=False)[0])
        assert [word for word in told[:-1] if word not in vocabulary] == []


def test_sampling_tells_different_stories(model: Gemma4ForCausalLM) -> None:
    torch.manual_seed(0)
    texts = generate(model, "Once upon a time, there was a", do_sample=True, num_return_sequences=8)
    names = set(WORDS["girls"]) | set(WORDS["boys"]) | {name for _, name in CREATURES}
    heroes = {found[1] for text in texts if (found := re.search(r"named (\w+)", text))}
    assert len(set(texts)) == 8
    assert len(heroes & names) >= 4


def test_unseen_stories_cost_little(model: Gemma4ForCausalLM) -> None:
    text = "\n".join(islice(stories(UNSEEN), 40))
    ids = torch.tensor(TOKENIZER(text).input_ids[: 8 * 512]).view(8, 512)
    loss = functional.cross_entropy(logits(model, ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert loss.item() < 1.2


def test_logits_are_spread_and_finite(model: Gemma4ForCausalLM) -> None:
    ids = torch.tensor([TOKENIZER(next(stories(UNSEEN))).input_ids])
    scores = logits(model, ids)
    assert torch.isfinite(scores).all()
    assert 1 < scores.std().item() < 20
    assert scores.abs().max().item() < 100
    assert scores.argmax(-1).unique().numel() > 20


def test_layer_scalars_are_not_ones(model: Gemma4ForCausalLM) -> None:
    assert tuple(layer.layer_scalar.item() for layer in model.model.layers) == LAYER_SCALARS
    assert 1.0 not in LAYER_SCALARS


def test_the_curve_beside_it_falls_from_chance(model: Gemma4ForCausalLM) -> None:
    with (SHIPPED / "loss.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert len(losses) == TrainOptions().steps
    assert losses[0] == pytest.approx(6.93, abs=0.2)  # ln 1024
    quarters = [sum(losses[start : start + 50]) / 50 for start in (200, 450, 700, 950)]
    assert quarters == sorted(quarters, reverse=True)
    assert quarters[-1] < 1.2


def test_the_card_quotes_what_the_model_says(model: Gemma4ForCausalLM) -> None:
    (text,) = generate(model, "Once upon", do_sample=False)
    assert text.split(".")[0] in (SHIPPED / "README.md").read_text()
