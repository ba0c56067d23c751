"""transformers' own OnnxExporter: a graph for the prompt, one for what follows, played with everything bound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def export(checkpoint: Path, folder: Path, fusions: Any = None) -> None:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="sdpa").eval()
    ids = torch.arange(3, 13)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    config = OnnxConfig(dynamic=True, ort_fusions=fusions)
    made = OnnxExporter().export_for_generation(model, inputs, config, multi_token_decode=True)
    made.save_pretrained(str(folder))
    model.config.save_pretrained(folder)


class Decoder:
    """One conversation."""

    def __init__(self, folder: Path, threads: int) -> None:
        import json

        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads, settings.log_severity_level = threads, 3
        providers = ["CPUExecutionProvider"]
        self._sessions = [
            onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), settings, providers=providers)
            for name in ("prefill", "decode")
        ]
        window = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("sliding_window") or 0
        self._window = onnxruntime.OrtValue.ortvalue_from_numpy(np.asarray(window, np.int64))
        self.reset()

    def reset(self) -> None:
        self._total = 0
        self._past: dict[str, Any] = {}

    def feed(self, ids: Any) -> Any:
        session, start = self._sessions[1 if self._total else 0], self._total
        self._total += len(ids)
        known = {
            "input_ids": ids[None],
            "position_ids": np.arange(start, self._total, dtype=np.int64)[None],
            "attention_mask": np.ones((1, self._total), np.int64),
        }
        binding = session.io_binding()
        for item in session.get_inputs():
            if item.name in known:
                binding.bind_cpu_input(item.name, known[item.name])
            elif item.name.endswith("_sliding_window_tensor"):
                binding.bind_ortvalue_input(item.name, self._window)
            else:
                binding.bind_ortvalue_input(item.name, self._past[item.name.removeprefix("input.")])
        names = [item.name for item in session.get_outputs()]
        for name in names:
            binding.bind_output(name)
        session.run_with_iobinding(binding)
        made = {name.removeprefix("output."): value for name, value in zip(names, binding.get_outputs(), strict=True)}
        self._past = made
        return made["logits"].numpy()[0, -1]


def open(folder: Path, threads: int) -> Any:
    return Decoder(folder, threads)
