"""The checkpoint card's "intended validation coverage", one test a line, and that each part really matters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import TINY

torch = pytest.importorskip("torch", reason="the exporter's extra is not installed")


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import Gemma4ForCausalLM

    return Gemma4ForCausalLM.from_pretrained(TINY, dtype=torch.float32, attn_implementation="eager").eval()


@pytest.fixture
def ids() -> Any:
    """300 tokens: more than twice the window."""
    tokens = np.random.default_rng(3).integers(3, 1024, (1, 300))
    tokens[0, 0] = 0
    return torch.from_numpy(tokens)


@pytest.fixture
def restore(model: Any) -> Iterator[Any]:
    """The model; whatever a test changes in its weights is put back."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    yield model
    model.load_state_dict(state)


def logits(model: Any, ids: Any) -> Any:
    with torch.no_grad():
        return model(input_ids=ids).logits[0]


def change(before: Any, after: Any) -> np.ndarray[Any, Any]:
    """Largest logit difference per position."""
    return (before - after).abs().amax(-1).numpy()


def test_config_is_the_cards() -> None:
    from transformers import Gemma4TextConfig

    config = Gemma4TextConfig.from_pretrained(TINY)
    assert (config.model_type, config.vocab_size, config.vocab_size_per_layer_input) == ("gemma4_text", 1024, 1024)
    assert (config.hidden_size, config.hidden_size_per_layer_input, config.intermediate_size) == (160, 24, 640)
    assert (config.num_attention_heads, config.num_key_value_heads, config.sliding_window) == (5, 1, 128)
    assert (config.max_position_embeddings, config.hidden_activation) == (1024, "gelu_pytorch_tanh")
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (0, 1, 2)
    assert [kind[0] for kind in config.layer_types] == list("ssfssf")


def test_for_causal_lm_has_the_cards_parameters(model: Any) -> None:
    assert type(model).__name__ == "Gemma4ForCausalLM"
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_597_624
    assert sum(parameter.numel() for parameter in model.model.layers[0].parameters()) + 0 == 377_184


def test_sliding_layers_matter_only_past_the_window(model: Any, ids: Any) -> None:
    config = model.config
    before = logits(model, ids)
    windows = [config.sliding_window]
    config.sliding_window = 4096
    try:
        differs = change(before, logits(model, ids))
    finally:
        config.sliding_window = windows[0]
    assert differs[:128].max() <= 1e-4
    assert differs[128:].max() > 1e-3


def test_full_layers_reach_past_the_window(model: Any, ids: Any) -> None:
    """What only a full layer can see: the first token, read 250 tokens later by one full layer's attention."""
    seen: dict[int, float] = {}
    hooks = []
    for index, layer in enumerate(model.model.layers):

        def keep(_module: Any, _inputs: Any, output: Any, index: int = index) -> None:
            seen[index] = float(output[1][0, :, -1, :100].sum())

        hooks.append(layer.self_attn.register_forward_hook(keep))
    logits(model, ids)
    for hook in hooks:
        hook.remove()
    assert all(seen[index] == 0 for index in (0, 1, 3, 4))
    assert all(seen[index] > 1e-4 for index in (2, 5))


def test_five_query_heads_share_one_key_value_head(model: Any) -> None:
    for layer in model.model.layers:
        assert layer.self_attn.q_proj.weight.shape == (160, 160)
        assert layer.self_attn.k_proj.weight.shape == (32, 160)
        assert layer.self_attn.num_key_value_groups == 5


def test_global_layers_have_the_global_key_value_heads(model: Any) -> None:
    for index in (2, 5):
        attention = model.model.layers[index].self_attn
        assert not attention.is_sliding
        assert attention.k_proj.weight.shape[0] // attention.head_dim == 1


def test_per_layer_inputs_matter(restore: Any, ids: Any) -> None:
    before = logits(restore, ids)
    restore.model.embed_tokens_per_layer.weight.data.zero_()
    assert change(before, logits(restore, ids)).min() > 1e-3


def test_head_and_embedding_are_one_tensor(restore: Any) -> None:
    assert restore.lm_head.weight is restore.model.embed_tokens.weight


def test_rms_norm_divides_by_the_root_mean_square(model: Any) -> None:
    norm = model.model.layers[0].input_layernorm
    x = torch.randn(2, 7, 160, generator=torch.Generator().manual_seed(1))
    expected = x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * norm.weight
    assert float((norm(x) - expected).abs().max()) <= 1e-5


def test_the_activation_is_the_tanh_gelu(model: Any) -> None:
    x = torch.linspace(-4, 4, 101, dtype=torch.float64)
    inner = 0.7978845608028654 * (x + 0.044715 * x**3)
    assert float((model.model.layers[0].mlp.act_fn(x) - 0.5 * x * (1 + torch.tanh(inner))).abs().max()) <= 1e-12


def test_generate_is_greedy_and_repeatable(model: Any) -> None:
    ids = torch.tensor([[0, 300, 400]])
    first = model.generate(ids, max_new_tokens=20, do_sample=False)
    assert torch.equal(first, model.generate(ids, max_new_tokens=20, do_sample=False))
    assert first.shape[1] > 3


def test_save_and_load_keep_every_bit(model: Any, ids: Any, tmp_path: Path) -> None:
    from transformers import Gemma4ForCausalLM

    model.save_pretrained(tmp_path)
    again = Gemma4ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager").eval()
    assert torch.equal(logits(model, ids), logits(again, ids))


def test_the_tokenizer_round_trips(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(TINY)
    tokenizer.save_pretrained(tmp_path)
    text = 'Once upon a time, Lily said: "Füße, 你好, 🐇!"\n'
    for candidate in (tokenizer, PreTrainedTokenizerFast.from_pretrained(tmp_path)):
        assert candidate.decode(candidate(text)["input_ids"], skip_special_tokens=True) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2)
