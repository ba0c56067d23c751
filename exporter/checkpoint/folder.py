"""What lies in a checkpoint's folder beside the weights that are read, and what is said about it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from kvparity.exporter.contract.adapters import ADAPTER_CONFIG, read_adapter_config
from kvparity.exporter.contract.errors import ExportError

__all__ = [
    "INDEX",
    "WEIGHTS",
    "brings_code",
    "has_weights",
    "is_gguf",
    "no_config",
    "no_weights",
    "read_object",
    "refuse_adapter",
    "refuse_remote_code",
    "text_name",
    "text_names",
]

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_LANGUAGE_MODEL = re.compile(r"(?<![^.])(language_model|text_model)\.")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
T = TypeVar("T")


def has_weights(folder: Path) -> bool:
    """Whether there are weights that transformers reads without pickle."""
    return (folder / WEIGHTS).is_file() or (folder / INDEX).is_file()


def is_gguf(path: Path) -> bool:
    """Whether a path is a GGUF file, by its first bytes (Ollama's have no ending) or by its ending."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return path.suffix == ".gguf" or stream.read(4) == b"GGUF"


def no_config(folder: Path) -> str:
    """What to pass instead of a folder without ``config.json``."""
    files = sorted(folder.glob("*.gguf"))
    return f"pass its GGUF file, such as {files[0]}" if files else "expected a folder that transformers saved"


def no_weights(folder: Path) -> str:
    """Why there are no weights to read, and what there is instead."""
    if (folder / WEIGHTS).is_symlink():
        return f"{WEIGHTS} is a link to {(folder / WEIGHTS).readlink()}, which is not there; fetch the checkpoint again"
    variants = sorted(folder.glob("model.*.safetensors"))
    if variants:
        return f"no {WEIGHTS}; {variants[0].name} is a variant, which is read once it is called {WEIGHTS}"
    others = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    if others:
        return f"no {WEIGHTS} and no {INDEX}; transformers does not read {others[0].name} without them"
    pickles = sorted(path for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        return (
            f"no {WEIGHTS}; {pickles[0].name} is a pickle, and reading one can run any code: "
            "load it in transformers where you trust it, and save it with save_pretrained"
        )
    return f"no {WEIGHTS} in {folder.name}/"


def text_names(tensors: Mapping[str, T]) -> dict[str, T]:
    """Tensors by the names that they have in the text model alone.

    ``model.language_model.layers.0…`` and ``language_model.model.layers.0…`` are ``model.layers.0…`` there.
    """
    return {text_name(name): tensor for name, tensor in tensors.items()}


def text_name(name: str) -> str:
    """The name that a tensor of a multimodal model has in its text model alone."""
    return _LANGUAGE_MODEL.sub("", name, count=1)


def refuse_adapter(folder: Path) -> None:
    """Refuse a folder with an adapter: alone it is no model, and beside weights nobody can tell whether it is merged.

    Raises:
        ExportError: There is an adapter.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        return
    base = read_adapter_config(folder).get("base_model_name_or_path") or "its base model"
    if not (folder / "config.json").is_file():
        raise ExportError(
            f"{folder}: an adapter of {base}, not a model; export the base model and name the adapter with --adapter"
        )
    raise ExportError(
        f"{folder}: {ADAPTER_CONFIG} lies beside the model, an adapter of {base}, and nobody can tell whether it is "
        "merged; move the adapter away, and to merge it name its folder with --adapter"
    )


def refuse_remote_code(folder: Path, source: str) -> None:
    """Refuse a config that only Python code from the checkpoint's folder can read.

    Raises:
        ExportError: The config names such code.
    """
    config = read_object(folder / "config.json")
    if "auto_map" in config:
        raise ExportError(
            f"{source}: model_type {config.get('model_type')!r} is not one of transformers' own, and the Python code "
            "that the checkpoint brings (auto_map in config.json) is never run; use a conversion to a class of "
            "transformers, where one exists"
        )


def brings_code(folder: Path) -> bool:
    """Whether the config names Python code of the checkpoint's own, which is never run."""
    return "auto_map" in read_object(folder / "config.json")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
