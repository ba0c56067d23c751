"""PyTorch itself: transformers' model with its own DynamicCache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ATTENTION = "eager"


class Decoder:
    """One conversation."""

    def __init__(self, checkpoint: Path, threads: int, attention: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        self._torch = torch
        self._model = AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation=attention
        ).eval()
        self.reset()

    def reset(self) -> None:
        from transformers import DynamicCache

        self._cache = DynamicCache(config=self._model.config)

    def feed(self, ids: Any) -> Any:
        with self._torch.inference_mode():
            tokens = self._torch.from_numpy(ids)[None]
            output = self._model(input_ids=tokens, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        return output.logits[0, -1].numpy()


def open(checkpoint: Path, threads: int, attention: str = ATTENTION) -> Decoder:
    return Decoder(checkpoint, threads, attention)
