"""What the tests of packages share: small checkpoints with a tokenizer, their bundles, and damage to a package."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.spec import ExportOptions
from tests.families import save_checkpoint, small_config
from tests.states import STATES

TINY = Path(__file__).resolve().parents[1] / "artifacts" / "tinygemma4text3m" / "hf"
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
TOKENS = {"vocab_size": 1024, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", TOKENS),
    "gemma3": (
        "gemma3_text",
        {
            **TOKENS,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "query_pre_attn_scalar": 16,
            "tie_word_embeddings": False,
        },
    ),
    "lfm2": ("lfm2", {**STATES["lfm2"][1], **TOKENS}),
    "qwen3_5": ("qwen3_5_text", {**STATES["qwen3_5"][1], **TOKENS}),
    "granite4": ("granitemoehybrid", {**STATES["granitemoehybrid"][1], **TOKENS}),
    "chat": ("qwen3", {**TOKENS, "sliding_window": None, "bos_token_id": None, "pad_token_id": None}),
}


def checkpoint(name: str, folder: Path, *, shard_kb: int | None = None) -> Path:
    """A model of two key-value heads and random weights, with the tiny checkpoint's tokenizer; ``chat`` answers."""
    model_type, settings = SMALL[name]
    save_checkpoint(small_config(model_type, settings), folder, seed=3)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TINY / file, folder / file)
    if name == "chat":
        (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
        tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
        tokenizer["post_processor"] = tokenizer["post_processor"]["processors"][0]  # nothing before a text
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
        settings = json.loads((folder / "generation_config.json").read_text("utf-8"))
        changed = json.dumps({**settings, "eos_token_id": [1, 5]})
        (folder / "generation_config.json").write_text(changed, encoding="utf-8")
    if shard_kb is not None:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder)
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size=f"{shard_kb}KB")
    return folder


def export_to(source: Path, target: Path, options: ExportOptions | None = None) -> Bundle:
    """A bundle without vectors."""
    from kvparity.exporter.checkpoint.source import resolve
    from kvparity.exporter.export import export

    return export(resolve(str(source)), target, options or ExportOptions(sliding_cache="full"), in_process=True)


def zero_row(weights: Path, row: int) -> None:
    """Zero what says how likely one token is, in a safetensors file of whatever name: no text can then choose it."""
    data = bytearray(weights.read_bytes())
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    names = ("lm_head.weight.scales", "lm_head.weight", "model.embed_tokens.weight")
    head = next(header[name] for name in names if name in header)
    start, end = head["data_offsets"]
    size = (end - start) // head["shape"][0]
    start += begin + row * size
    data[start : start + size] = bytes(size)
    weights.write_bytes(data)
