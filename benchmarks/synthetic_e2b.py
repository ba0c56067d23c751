"""Writes a Gemma 4 E2B-shaped text checkpoint of random bfloat16 weights, in shards, without holding more than one.

    python benchmarks/synthetic_e2b.py FOLDER [--layers 35] [--vocab 262144] [--shard-mb 1000]

Widths are E2B's: 1536 hidden, 8 heads of 256 (512 in full layers), one key-value head, per-layer embeddings of 256,
the last 20 layers share keys and values and are double-wide. It shows what an export of a model larger than memory
costs; the text that it writes is noise.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

BLOCK = 1 << 24  # elements drawn at once


def config(layers: int, vocab: int) -> Any:
    from transformers import Gemma4TextConfig

    return Gemma4TextConfig(
        vocab_size=vocab,
        vocab_size_per_layer_input=vocab,
        hidden_size=1536,
        intermediate_size=6144,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=1,
        head_dim=256,
        global_head_dim=512,
        hidden_size_per_layer_input=256,
        num_kv_shared_layers=20 * layers // 35,
        use_double_wide_mlp=True,
        layer_types=["full_attention" if index % 5 == 4 else "sliding_attention" for index in range(layers)],
        sliding_window=512,
        max_position_embeddings=131072,
        final_logit_softcapping=30.0,
        architectures=["Gemma4ForCausalLM"],
    )


def shapes(settings: Any) -> dict[str, tuple[int, ...]]:
    """Every tensor that is stored: tied embeddings once."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name != "lm_head.weight"}


def shards(sizes: dict[str, int], limit: int) -> list[list[str]]:
    """Names in order, as many to a shard as fit; a tensor above the limit has one of its own."""
    groups: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if not groups or size > room:
            groups.append([])
            room = limit
        groups[-1].append(name)
        room -= size
    return groups


def write(path: Path, tensors: dict[str, tuple[int, ...]], rng: np.random.Generator) -> None:
    """One safetensors file of random bfloat16, drawn block by block; norms are ones."""
    import ml_dtypes

    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in tensors.items():
        length = 2 * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + length]}
        offset += length
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 64)
    noise = (rng.standard_normal(BLOCK, np.float32) * 0.02).astype(ml_dtypes.bfloat16)
    ones = np.ones(BLOCK, ml_dtypes.bfloat16)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for shape in tensors.values():
            count, source = int(np.prod(shape, dtype=np.int64)), noise if len(shape) > 1 else ones
            for start in range(0, count, BLOCK):
                shift = int(rng.integers(BLOCK))  # the same noise from another place on: drawing it takes minutes
                np.roll(source[: min(BLOCK, count - start)], shift).tofile(stream)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=35)
    parser.add_argument("--vocab", type=int, default=262144)
    parser.add_argument("--shard-mb", type=int, default=1000)
    given = parser.parse_args()
    settings = config(given.layers, given.vocab)
    tensors = shapes(settings)
    sizes = {name: 2 * int(np.prod(shape, dtype=np.int64)) for name, shape in tensors.items()}
    groups = shards(sizes, given.shard_mb * 1_000_000)
    given.folder.mkdir(parents=True, exist_ok=True)
    settings.save_pretrained(given.folder)
    weight_map: dict[str, str] = {}
    for index, names in enumerate(groups, 1):
        file = f"model-{index:05}-of-{len(groups):05}.safetensors"
        write(given.folder / file, {name: tensors[name] for name in names}, np.random.default_rng(index))
        weight_map.update(dict.fromkeys(names, file))
    table = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
    (given.folder / "model.safetensors.index.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    print(f"{len(tensors)} tensors, {sum(sizes.values()) / 1e9:.2f} GB in {len(groups)} shards")


if __name__ == "__main__":
    main()
