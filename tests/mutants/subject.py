"""The model that is mutated: a seeded Gemma 4 with every feature whose faults the catalogue knows, at toy size.

Two key-value heads for four query heads, head sizes that differ between layer kinds, shared caches, per-layer inputs,
layer scalars, a final softcap, double-wide MLPs, tied embeddings, and a window of eight, so that cases are short.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kvparity.exporter.contract.bundle import Bundle

__all__ = ["WINDOW", "make_subject"]

WINDOW = 8
_S, _F = "sliding_attention", "full_attention"
_CONFIG: dict[str, Any] = {
    "vocab_size": 96,
    "vocab_size_per_layer_input": 96,
    "hidden_size": 32,
    "hidden_size_per_layer_input": 8,
    "intermediate_size": 48,
    "num_hidden_layers": 7,
    "layer_types": [_S, _S, _F, _S, _F, _S, _F],
    "num_kv_shared_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "global_head_dim": 24,
    "sliding_window": WINDOW,
    "max_position_embeddings": 128,
    "use_double_wide_mlp": True,
    "final_logit_softcapping": 5.0,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
}


def make_subject(folder: Path) -> Bundle:
    """Make the checkpoint and its bundle, or open the bundle where it was made before.

    Args:
        folder: Takes ``hf`` and ``bundle``.
    """
    from kvparity.exporter.checkpoint.source import resolve
    from kvparity.exporter.contract.spec import ExportOptions
    from kvparity.exporter.export import export
    from kvparity.runners.reference.record import record_cases

    if (folder / "bundle" / "manifest.json").is_file():
        return Bundle.open(folder / "bundle")
    _save_checkpoint(folder / "hf")
    return export(resolve(str(folder / "hf")), folder / "bundle", ExportOptions(), record=record_cases, limit=64)


def _save_checkpoint(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, Gemma4TextConfig

    torch.manual_seed(17)
    model = AutoModelForCausalLM.from_config(Gemma4TextConfig(**_CONFIG), dtype=torch.float32)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(("q_norm.weight", "k_norm.weight")):  # soft attention: float32 noise stays far under 1e-4
                tensor.copy_(0.4 + 0.1 * torch.randn_like(tensor))
            elif name.endswith("norm.weight"):
                tensor.copy_(1 + 0.2 * torch.randn_like(tensor))
            elif name.endswith("layer_scalar"):
                tensor.copy_(0.6 + 0.3 * torch.rand_like(tensor))
            elif "embed" in name and tensor.dim() == 2:
                tensor.copy_(0.3 * torch.randn_like(tensor))
            elif tensor.dim() == 2:
                tensor.copy_(torch.randn_like(tensor) / tensor.shape[1] ** 0.5)
    model.save_pretrained(folder)
