"""Attention beside the common kind, judged by plain ONNX Runtime against ``from_pretrained``: none of the referee.

150 tokens in prefill, chunks and steps, half of the rows padded on the left: past every edge of a chunk of 8.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.families import save_checkpoint
from tests.states import plain_errors

pytest.importorskip("torch", reason="the exporter's extra is not installed")
pytest.importorskip("onnxruntime")

_SIBLING = {  # 3 M parameters: the reference model's own size, with latent attention
    **{"num_hidden_layers": 5, "hidden_size": 216, "intermediate_size": 432, "moe_intermediate_size": 108},
    **{"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 16, "q_lora_rank": None, "kv_lora_rank": 64},
    **{"qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 32, "n_routed_experts": 4, "n_shared_experts": 1},
    **{"num_experts_per_tok": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "vocab_size": 1024},
}
MODELS: dict[str, dict[str, Any]] = {
    "llama4_text": {"num_hidden_layers": 4, "floor_scale": 30, "no_rope_layer_interval": 2, "attention_chunk_size": 8},
    "deepseek_v2": _SIBLING,
    "bloom": {"n_layer": 3, "n_head": 4},
    "gpt2": {"n_layer": 3, "n_head": 4, "n_embd": 32, "n_positions": 256},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_plain_onnxruntime_gives_what_from_pretrained_gives(name: str, tmp_path: Path) -> None:
    from kvparity.exporter.checkpoint.source import resolve
    from kvparity.exporter.contract.spec import ExportOptions
    from kvparity.exporter.export import export
    from tests.families import small_config

    settings = MODELS[name] if name == "gpt2" else {"max_position_embeddings": 256, **MODELS[name]}
    save_checkpoint(small_config(name, settings), tmp_path / "hf")
    export(resolve(str(tmp_path / "hf")), tmp_path / "bundle", ExportOptions(), in_process=True)
    ours, own = plain_errors(tmp_path / "hf", tmp_path / "bundle")
    assert 0 < ours.rms <= 2 * own.rms, (ours, own)
    assert ours.largest <= 2 * own.largest, (ours, own)
