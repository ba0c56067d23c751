"""Checkpoints whose files hold a model's weights by its own names, so that they can be read a module at a time.

Whether they do is transformers' decision: its renaming rules must give each name back, without a conversion.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kvparity.exporter.contract.checkpoint_files import CheckpointFiles
from kvparity.exporter.contract.dequantize import quantization_of
from kvparity.runners.reference.model import empty_model

__all__ = ["direct_files"]

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}


def direct_files(checkpoint: CheckpointFiles, dtype: str) -> tuple[dict[str, Path], str]:
    """Which file of a checkpoint holds each weight, or why they cannot be read without loading the whole model.

    Args:
        checkpoint: Where its files are.
        dtype: What ``from_pretrained`` would load in; half types are taken as they are stored.
    """
    if checkpoint.gguf or checkpoint.adapter:
        return {}, "weights of a GGUF file, or with an adapter, are not stored by their names in the model"
    model = empty_model(checkpoint, dtype)
    if quantization_of(model.config) is not None:
        return {}, "the checkpoint's weights are quantised"
    files, dtypes, shapes = _headers(checkpoint.folder)
    state = model.state_dict(keep_vars=True)
    names: dict[int, list[str]] = {}
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]:
        if name in state:
            names.setdefault(id(tensor), []).append(name)
    moved = _moved(model, files)
    for same in names.values():
        stored = [name for name in same if name in files]
        if len(stored) != 1 or stored[0] in moved or shapes[stored[0]] != tuple(state[stored[0]].shape):
            return {}, f"{same[0]} is not stored once and as it is"
        loaded = _DTYPES.get(str(state[stored[0]].dtype).removeprefix("torch."))
        exact = dtypes[stored[0]] in _DTYPES.values() if dtype == "float32" else dtypes[stored[0]] == loaded
        if loaded is not None and not exact:
            return {}, f"{same[0]} is stored as {dtypes[stored[0]]} and loaded as {loaded}"
    return files, ""


def _headers(folder: Path) -> tuple[dict[str, Path], dict[str, str], dict[str, tuple[int, ...]]]:
    """File, dtype and shape of every tensor, of the files that transformers takes."""
    from safetensors import safe_open

    if (folder / _WEIGHTS).is_file():
        found = [_WEIGHTS]
    else:
        found = sorted(set(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    files: dict[str, Path] = {}
    dtypes: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path in (folder / Path(name).name for name in found):
        with safe_open(path, framework="pt") as file:
            for name in list(file.keys()):
                part = file.get_slice(name)
                files[name], dtypes[name], shapes[name] = path, part.get_dtype(), tuple(part.get_shape())
    return files, dtypes, shapes


def _moved(model: Any, files: dict[str, Path]) -> set[str]:
    """Stored names that transformers renames, or makes other weights of."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    state = model.state_dict()
    return {
        name
        for name in files
        if rename_source_key(name, renamings, converters, model.base_model_prefix, state) != (name, None)
    }
