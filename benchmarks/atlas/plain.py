"""The second way: a package in plain ONNX Runtime beside transformers' own forward, without anything of kvparity.

``python plain.py PACKAGE CHECKPOINT`` prints, as JSON, the largest difference of logits by question. It knows ports by
order alone: inputs and outputs of four axes are the caches, in turn.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

PROMPT, LONG, CHUNK, PAD = 6, 24, 5, 3  # the models' window is 8


class Package:
    """One merged graph, or a prompt's and a decode call's."""

    def __init__(self, folder: Path, size: int) -> None:
        import onnxruntime

        self.size = size
        names = {path.stem: path for path in sorted(folder.rglob("*.onnx"))}
        order = ("prefill", "decoder_model", "decoder_model_merged", "model")
        first = next((names[stem] for stem in order if stem in names), next(iter(names.values())))
        later = next((names[stem] for stem in ("decode", "decoder_with_past_model") if stem in names), first)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        self.sessions = [
            onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"]) for path in (first, later)
        ]
        config = json.loads((folder / "genai_config.json").read_text()) if "genai" in str(folder) else {}
        self.sliding = config.get("model", {}).get("decoder", {}).get("sliding_window", {})

    def run(self, ids: Any, mask: Any, past: list[Any] | None, window: int) -> tuple[Any, list[Any]]:
        """Logits and caches of one call; ``mask`` covers what was before as well."""
        session = self.sessions[past is not None]
        rows, total = ids.shape[0], mask.shape[1]
        given = {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": np.maximum(mask.cumsum(axis=1) - 1, 0)[:, -ids.shape[1] :],
            "cache_position": np.arange(total - ids.shape[1], total),
            "use_cache_branch": np.asarray([past is not None]),
        }
        feeds: dict[str, Any] = {}
        caches = [port for port in session.get_inputs() if len(port.shape) == 4]
        for index, port in enumerate(caches):
            feeds[port.name] = past[index] if past is not None else self._empty(port, rows)
        for port in session.get_inputs():
            name = next((name for name in given if name in port.name), "")
            if port.name in feeds:
                continue
            if "sliding_window" in port.name:
                feeds[port.name] = np.asarray(window)
            elif name:
                kind = {"tensor(int32)": np.int32, "tensor(bool)": np.bool_}.get(port.type, np.int64)
                feeds[port.name] = given[name].astype(kind)
        names = [port.name for port in session.get_outputs()]
        made = dict(zip(names, session.run(names, feeds), strict=True))
        logits = next(array for name, array in made.items() if "logits" in name)
        return logits, [array for name, array in made.items() if array.ndim == 4]

    def _empty(self, port: Any, batch: int) -> Any:
        layer = int(next(iter(re.findall(r"\d+", port.name)), "0"))
        kind = {"tensor(float16)": np.float16}.get(port.type, np.float32)
        rows = self.sliding.get("window_size", 0) if layer in self.sliding.get("layers", ()) else 0
        if "use_cache_branch" in {item.name for item in self.sessions[0].get_inputs()}:
            rows = max(rows, 1)
        free = {0: batch, 2: rows, 3: self.size}
        return np.zeros([size if isinstance(size, int) else free[axis] for axis, size in enumerate(port.shape)], kind)


def differences(folder: Path, checkpoint: Path) -> dict[str, Any]:
    """Largest difference of the last logits by question; a line of error where a call fails."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()
    window = getattr(model.config, "sliding_window", None) or 0
    size = getattr(model.config, "head_dim", None) or model.config.hidden_size // model.config.num_attention_heads
    package = Package(folder, size)
    ids = 3 + np.random.default_rng(0).integers(0, model.config.vocab_size - 3, (1, LONG + CHUNK))

    def wanted(count: int) -> Any:
        with torch.no_grad():
            return model(torch.from_numpy(ids[:, :count])).logits[0, -1].numpy()

    def prompt(count: int) -> Any:
        return package.run(ids[:, :count], np.ones((1, count), np.int64), None, window)

    def steps(first: int, sizes: list[int]) -> Any:
        logits, past = prompt(first)
        for size in sizes:
            total = first + size
            logits, past = package.run(ids[:, first:total], np.ones((1, total), np.int64), past, window)
            first = total
        return logits[0, -1] - wanted(first)

    def padded() -> Any:
        rows = np.concatenate([ids[:, :LONG], np.concatenate([ids[:, :PAD] * 0, ids[:, : LONG - PAD]], axis=1)])
        mask = np.ones_like(rows)
        mask[1, :PAD] = 0
        logits, _ = package.run(rows, mask, None, window)
        return np.stack([logits[0, -1] - wanted(LONG), logits[1, -1] - wanted(LONG - PAD)])

    asked = {
        "prefill": lambda: prompt(PROMPT)[0][0, -1] - wanted(PROMPT),
        "past the window": lambda: prompt(LONG)[0][0, -1] - wanted(LONG),
        "steps": lambda: steps(LONG, [1] * CHUNK),
        "chunks": lambda: steps(LONG, [CHUNK]),
        "left padding": padded,
    }
    found: dict[str, Any] = {}
    for name, question in asked.items():
        try:
            found[name] = float(np.abs(question()).max())
        except Exception as error:  # an engine may raise anything
            found[name] = re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")[:300]
    return found


if __name__ == "__main__":
    print(json.dumps(differences(Path(sys.argv[1]), Path(sys.argv[2]))))
