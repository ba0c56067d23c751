"""Plays any ONNX decoder with the usual names in ONNX Runtime: present of one call is past of the next, all bound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


class Decoder:
    """One conversation on one merged graph (past may have no rows)."""

    def __init__(self, path: Path, threads: int) -> None:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads, settings.log_severity_level = threads, 3
        self._session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        self._inputs = {item.name: item for item in self._session.get_inputs()}
        self._outputs = [item.name for item in self._session.get_outputs()]
        self.reset()

    def reset(self) -> None:
        self._total, self._past = 0, {}
        for name, item in self._inputs.items():
            if name.startswith("past_key_values."):
                empty = np.zeros((1, item.shape[1], 0, item.shape[3]), np.float32)
                self._past[name] = onnxruntime.OrtValue.ortvalue_from_numpy(empty)

    def feed(self, ids: Any) -> Any:
        start, total = self._total, self._total + len(ids)
        known = {
            "input_ids": ids[None],
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(start, total, dtype=np.int64)[None],
        }
        binding = self._session.io_binding()
        for name, array in known.items():
            if name in self._inputs:
                binding.bind_cpu_input(name, array)
        for name, value in self._past.items():
            binding.bind_ortvalue_input(name, value)
        for name in self._outputs:
            binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        made = dict(zip(self._outputs, binding.get_outputs(), strict=True))
        self._total = total
        self._past = {name: made[name.replace("past_key_values.", "present.")] for name in self._past}
        return made["logits"].numpy()[0, -1]
