"""Records what a PyTorch model computes, by its own modules' names: forward hooks, one safetensors file.

It stands for any PyTorch code that is to be held against a bundle: a port, a fine-tuned class, another attention.

    python hooks.py CHECKPOINT BUNDLE -o mine.safetensors --case handoff-129
    python cli.py compare BUNDLE --trace mine.safetensors --names hooks --case handoff-129 --locate
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM


def record(checkpoint: str, bundle: Path, case: str) -> dict[str, torch.Tensor]:
    """Play a case of one row call by call, and keep what every module returns."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    given = np.load(bundle / "cases" / f"{case}.npz")
    found: dict[str, torch.Tensor] = {}
    place = ""

    def keep(name: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple) else output
            if isinstance(value, torch.Tensor):
                found[f"{place}/{name}"] = value.detach().clone().contiguous()

        return hook

    for name, module in model.named_modules():
        module.register_forward_hook(keep(name))
    cache, start = None, 0
    for step, tokens in enumerate(given["chunks"].tolist()):
        place = f"{case}/step_{step}"
        with torch.no_grad():
            output = model(torch.from_numpy(given["input_ids"][:, start : start + tokens]), past_key_values=cache)
        cache, start = output.past_key_values, start + tokens
        found[f"{place}/logits"] = output.logits.contiguous()  # what follows the head, a softcap, has no module
        for index, layer in enumerate(cache.layers):
            found[f"{place}/cache.{index}.key"] = layer.keys.clone().contiguous()
            found[f"{place}/cache.{index}.value"] = layer.values.clone().contiguous()
    return {name: value for name, value in found.items() if not name.endswith("/lm_head")}


def main() -> None:
    """Read the command line, play, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help="the recording to write (.safetensors)")
    parser.add_argument("--case", default="handoff-129", help="a case of one row")
    arguments = parser.parse_args()
    found = record(arguments.checkpoint, arguments.bundle, arguments.case)
    save_file(found, arguments.output, metadata={"engine": f"transformers, hooks, torch {torch.__version__}"})


if __name__ == "__main__":
    main()
