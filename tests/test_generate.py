"""Choosing tokens and chat templates, without a model."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvparity.exporter.contract.errors import BundleError
from kvparity.exporter.contract.model_files import end_tokens
from kvparity.runners.decode.chat import chat_prompt, chat_template
from kvparity.runners.decode.generate import Sampling, choose

LOGITS = np.log(np.asarray([0.5, 0.3, 0.15, 0.05]))


def drawn(sampling: Sampling, count: int = 4000) -> np.ndarray:
    random = np.random.default_rng(1)
    return np.bincount([choose(LOGITS, sampling, random) for _ in range(count)], minlength=4) / count


def test_no_temperature_is_greedy() -> None:
    assert drawn(Sampling(), 10).tolist() == [1, 0, 0, 0]


def test_temperature_one_follows_the_probabilities() -> None:
    assert np.abs(drawn(Sampling(temperature=1.0)) - np.exp(LOGITS)).max() < 0.03


def test_a_lower_temperature_sharpens() -> None:
    assert drawn(Sampling(temperature=0.3))[0] > 0.75


def test_top_k_and_top_p_cut_the_tail() -> None:
    assert drawn(Sampling(temperature=1.0, top_k=2))[2:].tolist() == [0, 0]
    assert drawn(Sampling(temperature=1.0, top_p=0.6))[2:].tolist() == [0, 0]
    assert drawn(Sampling(temperature=1.0, top_p=0.6))[1] > 0.3
    assert drawn(Sampling(temperature=1.0, top_p=0.4)).tolist() == [1, 0, 0, 0]


@settings(max_examples=50, deadline=None)
@given(
    logits=st.lists(st.floats(-50, 50), min_size=1, max_size=20),
    top_k=st.integers(0, 25),
    top_p=st.floats(0.01, 1),
    temperature=st.floats(0, 3),
)
def test_a_token_of_the_vocabulary_always_comes_out(
    logits: list[float], top_k: int, top_p: float, temperature: float
) -> None:
    token = choose(np.asarray(logits), Sampling(temperature, top_k, top_p), np.random.default_rng(0))
    assert 0 <= token < len(logits)


def test_a_template_is_rendered_with_the_models_tokens(tmp_path: Path) -> None:
    template = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    config = {"chat_template": template, "bos_token": {"content": "<s>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert chat_prompt(tmp_path, "Hi") == "<s><user>Hi<assistant>"
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    assert chat_prompt(tmp_path, "Hi") == "Hi!"


def test_no_template_is_said(tmp_path: Path) -> None:
    assert chat_template(tmp_path) is None
    with pytest.raises(BundleError, match="no chat template"):
        chat_prompt(tmp_path, "Hi")


@pytest.mark.parametrize(
    "template", ["{{ ''.__class__.__mro__ }}{% bad %}", "{{ raise_exception('no') }}", "{{ 1 + 'a' }}"]
)
def test_a_template_that_misbehaves_is_refused(tmp_path: Path, template: str) -> None:
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(BundleError, match="does not render"):
        chat_prompt(tmp_path, "Hi")


def test_a_template_cannot_reach_python(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(BundleError, match="does not render"):
        chat_prompt(tmp_path, "Hi")


@pytest.mark.parametrize(
    ("text", "ends"), [('{"eos_token_id": [1, 106]}', {1, 106}), ('{"eos_token_id": 7}', {1, 7}), ("{}", {1})]
)
def test_generation_settings_name_further_end_tokens(tmp_path: Path, text: str, ends: set[int]) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    bundle = SimpleNamespace(root=tmp_path, model=SimpleNamespace(eos_token_ids=(1,), vocab_size=1000))
    assert end_tokens(bundle) == ends  # type: ignore[arg-type]
    (tmp_path / "generation_config.json").write_text("[")
    with pytest.raises(BundleError, match="not a JSON object"):
        end_tokens(bundle)  # type: ignore[arg-type]
