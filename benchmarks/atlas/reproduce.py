"""The smallest reproduction of each fault: ``python reproduce.py NAME`` in an environment with the exporter.

Needs torch, transformers, onnxruntime and the exporter; nothing of kvparity. It makes a seeded model of two layers,
runs the exporter's own command, and prints how far the logits of six tokens are from transformers' own, whose size is 1
to 10; a right export is within 1e-5.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["FAULTS", "Fault"]

GENAI = ("-m", "onnxruntime_genai.models.builder", "-i", "MODEL", "-o", "OUT", "-p", "fp32", "-e", "cpu", "-c", "CACHE")
MOBIUS = ("-m", "mobius", "build", "--config", "MODEL", "OUT", "--dtype", "f32")
SIZES = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
}


@dataclass(frozen=True)
class Fault:
    """One fault of an exporter.

    Attributes:
        name: Of the reproduction.
        exporter: Whose, with the version that was tried.
        cause: In a line, with its place in the exporter's source.
        command: What exports, after ``python``; MODEL, OUT and CACHE are folders.
        model_type: Of the seeded model.
        settings: Of its config, beyond the small sizes.
        pads: Left padding of the second of two rows.
    """

    name: str
    exporter: str
    cause: str
    command: Sequence[str]
    model_type: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    pads: int = 0


FAULTS = (
    Fault(
        "genai-head-by-width",
        "onnxruntime-genai 0.18.0, model builder",
        "any linear layer with as many outputs as the vocabulary has tokens is taken for the head (`has_lm_head`, "
        "builders/base.py): the logits are then those of the first MLP",
        GENAI,
        "llama",
        {"vocab_size": 128},
    ),
    Fault(
        "genai-embedding-scale",
        "onnxruntime-genai 0.18.0, model builder",
        "Gemma's embedding scale is √hidden rounded to two decimals (builders/gemma.py): 9.8 instead of 9.79796, 25.3 "
        "instead of 25.29822 for Gemma 3 270M",
        GENAI,
        "gemma",
        {"hidden_size": 96},
    ),
    Fault(
        "mobius-embedding-scale",
        "mobius-onnx 0.1.0",
        "Gemma 3's embedding scale is rounded to float16 in a float32 export (models/gemma3.py), Gemma's and Gemma 2's "
        "to two decimals (models/gemma.py)",
        MOBIUS,
        "gemma3_text",
        {"hidden_size": 96, "query_pre_attn_scalar": 16},
    ),
    Fault(
        "mobius-query-scale",
        "mobius-onnx 0.1.0",
        "Gemma 3's `query_pre_attn_scalar` is not read (models/gemma3.py): scores are scaled by 1 / √head_dim; Gemma 3 "
        "27B has 168 with heads of 128",
        MOBIUS,
        "gemma3_text",
        {"query_pre_attn_scalar": 24},
    ),
    Fault(
        "mobius-left-padding",
        "mobius-onnx 0.1.0, --ep cpu; onnxruntime-genai 0.18.0, model builder",
        "GroupQueryAttention knows no left padding: rows that begin with masked slots attend to them, and are turned "
        "by the wrong positions",
        (*MOBIUS, "--ep", "cpu"),
        "llama",
        {},
        2,
    ),
)


def difference(fault: Fault, folder: Path) -> float:
    """Largest difference of the last logits of a prompt of six tokens."""
    import numpy as np
    import onnxruntime
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(0)
    config = CONFIG_MAPPING[fault.model_type](**{**SIZES, **fault.settings})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().float()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.3)  # large enough that every part of the model shows in the logits
    model.save_pretrained(folder / "model")
    _tokenizer(folder / "model", config.vocab_size)
    places = {"MODEL": "model", "OUT": "out", "CACHE": "cache"}
    words = [str(folder / places[word]) if word in places else word for word in fault.command]
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    session = onnxruntime.InferenceSession(str(next((folder / "out").rglob("model.onnx"))))
    ids = np.arange(6)[None] * 7 + 3
    mask = np.ones_like(ids)
    if fault.pads:
        ids = np.concatenate([ids, np.pad(ids[:, : -fault.pads], ((0, 0), (fault.pads, 0)))])
        mask = np.concatenate([mask, (np.arange(6) >= fault.pads).astype(int)[None]])
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": np.maximum(mask.cumsum(axis=1) - 1, 0)}
    feeds = {port.name: given[port.name] for port in session.get_inputs() if port.name in given}
    for port in session.get_inputs():
        if port.name not in feeds:
            feeds[port.name] = np.zeros((len(ids), config.num_key_value_heads, 0, config.head_dim), np.float32)
    logits = session.run(["logits"], feeds)[0][-1, -1]
    with torch.no_grad():
        wanted = model(torch.from_numpy(ids[-1:, fault.pads :])).logits[0, -1].numpy()
    return float(np.abs(logits - wanted).max())


def _tokenizer(folder: Path, size: int) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(size)}, "w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1", bos_token="w2").save_pretrained(
        folder
    )


if __name__ == "__main__":
    for item in FAULTS:
        if item.name in sys.argv[1:]:
            with tempfile.TemporaryDirectory() as place:
                print(f"{item.name}: {difference(item, Path(place)):.3g}")
