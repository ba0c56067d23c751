"""The tiny Gemma 4: the configuration and the parameter count of the model card it follows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import Gemma4ForCausalLM, Gemma4TextConfig

from kvparity.exporter.contract.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "BOS_ID",
    "EOS_ID",
    "LAYER_SCALARS",
    "PAD_ID",
    "PARAMETERS_BY_PREFIX",
    "TIED_HEAD_PARAMETERS",
    "TOTAL_PARAMETERS",
    "VOCAB_SIZE",
    "check_parameters",
    "count_by_prefix",
    "tiny_config",
]

VOCAB_SIZE = 1024
BOS_ID, EOS_ID, PAD_ID = 0, 1, 2

TOTAL_PARAMETERS = 2_597_624
TIED_HEAD_PARAMETERS = 163_840
"""`lm_head` shares `model.embed_tokens`, so it adds nothing to the total."""

PARAMETERS_BY_PREFIX: dict[str, int] = {
    "model.embed_tokens": 163_840,
    "model.embed_tokens_per_layer": 147_456,
    **{f"model.layers.{layer}": 377_184 for layer in range(6)},
    "model.norm": 160,
    "model.per_layer_model_projection": 23_040,
    "model.per_layer_projection_norm": 24,
}

LAYER_SCALARS = (0.75, 0.875, 1.125, 0.75, 1.25, 0.875)
"""Values of the `layer_scalar` buffers (not parameters, not trained). Real Gemma 4 checkpoints carry values other than
one; with ones, an exporter that drops the factor would still pass. Dyadic, so exact in every float format."""


def tiny_config() -> Gemma4TextConfig:
    """The card's configuration: six layers `ssFssF`, window 128, one key-value head, per-layer inputs of width 24."""
    pattern = ["sliding_attention", "sliding_attention", "full_attention"]
    return Gemma4TextConfig(
        vocab_size=VOCAB_SIZE,
        vocab_size_per_layer_input=VOCAB_SIZE,
        hidden_size=160,
        hidden_size_per_layer_input=24,
        intermediate_size=640,
        num_hidden_layers=6,
        num_attention_heads=5,
        num_key_value_heads=1,
        num_global_key_value_heads=1,
        head_dim=32,
        global_head_dim=32,
        sliding_window=128,
        max_position_embeddings=1024,
        layer_types=pattern * 2,
        hidden_activation="gelu_pytorch_tanh",
        tie_word_embeddings=True,
        attention_bias=False,
        rms_norm_eps=1e-6,
        enable_moe_block=False,
        use_double_wide_mlp=False,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )


def count_by_prefix(sizes: Mapping[str, int]) -> dict[str, int]:
    """Sums element counts under the card's prefixes.

    Args:
        sizes: Parameter name to number of elements; buffers (`layer_scalar`) and the tied `lm_head` must be left out.

    Returns:
        Prefix to count: `model.layers.N` for what belongs to layer N, `model.<child>` for the rest.
    """
    counts: dict[str, int] = {}
    for name, size in sizes.items():
        parts = name.split(".")
        prefix = ".".join(parts[: 3 if parts[1] == "layers" else 2])
        counts[prefix] = counts.get(prefix, 0) + size
    return counts


def check_parameters(model: Gemma4ForCausalLM) -> None:
    """Raises ExportError unless the model has exactly the card's trainable parameters, prefix by prefix, head tied."""
    sizes = {name: weight.numel() for name, weight in model.named_parameters() if weight.requires_grad}
    counts = count_by_prefix(sizes)
    if counts != PARAMETERS_BY_PREFIX:
        wrong = {
            prefix: (counts.get(prefix, 0), PARAMETERS_BY_PREFIX.get(prefix, 0))
            for prefix in sorted(counts.keys() | PARAMETERS_BY_PREFIX.keys())
            if counts.get(prefix, 0) != PARAMETERS_BY_PREFIX.get(prefix, 0)
        }
        raise ExportError(
            f"the tiny Gemma 4 does not have the card's parameters: (found, expected) by prefix {wrong}; "
            "the installed transformers builds this model differently: use the version in pyproject.toml"
        )
