"""A judge that uses none of the referee: graphs in plain ONNX Runtime against transformers' ``from_pretrained``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["graph_logits", "graph_logits_by_call", "largest_difference", "model_logits_by_call"]


def graph_logits(bundle: Path, ids: np.ndarray[Any, Any], cut: int) -> np.ndarray[Any, Any]:
    """Logits (tokens, vocabulary) of a dynamic bundle: a prefill of ``cut`` tokens, then one token at a time."""
    return graph_logits_by_call(bundle, ids, (cut, *[1] * (len(ids) - cut)))


def graph_logits_by_call(bundle: Path, ids: np.ndarray[Any, Any], calls: Sequence[int]) -> np.ndarray[Any, Any]:
    """Logits (tokens, vocabulary) of a dynamic bundle: a prefill, then the decode graph, of so many tokens each."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    past: dict[str, Any] = {}
    rows: list[Any] = []
    sessions = {
        kind: onnxruntime.InferenceSession(bundle / f"{kind}.onnx", options, providers=["CPUExecutionProvider"])
        for kind in ("prefill", "decode")
    }
    for start, stop in pairwise([0, *accumulate(calls)]):
        inputs = {
            "input_ids": ids[None, start:stop],
            "attention_mask": np.ones((1, stop), np.int64),
            "position_ids": np.arange(start, stop)[None],
            **past,
        }
        session = sessions["decode" if start else "prefill"]
        names = [output.name for output in session.get_outputs()]
        wanted = {port.name: inputs[port.name] for port in session.get_inputs()}
        outputs = dict(zip(names, session.run(names, wanted), strict=True))
        past = {name.replace("present", "past_key_values"): v for name, v in outputs.items() if name != "logits"}
        rows.append(outputs["logits"][0])
    return np.concatenate(rows)


def model_logits_by_call(model: Any, ids: np.ndarray[Any, Any], calls: Sequence[int]) -> np.ndarray[Any, Any]:
    """The same of a loaded transformers model with transformers' own cache."""
    import torch
    from transformers import DynamicCache

    cache, rows = DynamicCache(config=model.config), []
    with torch.no_grad():
        for start, stop in pairwise([0, *accumulate(calls)]):
            rows.append(model(input_ids=torch.tensor(ids[None, start:stop]), past_key_values=cache).logits[0].numpy())
    return np.concatenate(rows)


def largest_difference(bundle: Path, model: Any, *, tokens: int = 24, cut: int = 12, seed: int = 5) -> float:
    """The largest difference of logits from a loaded transformers model, relative to the largest logit."""
    import torch

    vocabulary = model.config.get_text_config().vocab_size
    ids = np.random.default_rng(seed).integers(3, vocabulary, tokens)
    with torch.no_grad():
        wanted = model.float()(input_ids=torch.tensor(ids)[None], use_cache=False).logits[0].numpy()
    return float(np.abs(graph_logits(bundle, ids, cut) - wanted).max() / np.abs(wanted).max())
