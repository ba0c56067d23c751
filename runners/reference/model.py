"""The reference model: a checkpoint as its own class's ``from_pretrained`` loads it from the user's files.

Nothing of the exporter's reading is used: which file holds a weight, which of two tensors counts, what is tied, which
weights stay float32 and what loading changes are transformers' own decisions here.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from kvparity.exporter.contract.adapters import merge_adapter
from kvparity.exporter.contract.checkpoint_files import CheckpointFiles
from kvparity.exporter.contract.dequantize import ask_dense, make_dense
from kvparity.exporter.contract.errors import BundleError, lines_of
from kvparity.exporter.contract.gguf_loading import whole_gguf
from kvparity.exporter.contract.quiet import quiet_libraries
from kvparity.exporter.contract.text_part import build_language_model, named_class
from kvparity.runners.engines._streamed import widen_as_called

__all__ = ["empty_model", "load_reference", "text_weight_name"]

_LARGE = 50_000_000  # parameters from which a float64 model would take gigabytes
_TEXT_PARTS = ("language_model", "text_model")  # modules of multimodal models that hold the language model


def load_reference(checkpoint: CheckpointFiles, dtype: str, config: Path, *, lift: bool = False) -> Any:
    """The model of a checkpoint in memory: its own class, eager attention and experts, in eval mode.

    A multimodal checkpoint gives the multimodal model, which takes text inputs: its own head, scale and ties apply.

    Args:
        checkpoint: Where its files are.
        dtype: What ``from_pretrained`` loads in; weights that the class keeps in float32 stay float32.
        config: Folder whose config is taken for a GGUF file: transformers' reader skips keys that change the logits.
        lift: Compute in float64, one module widened at a time where the model is large, for
            :func:`exporter.contract.float64.lifted`. Of half types these are the weights as loaded; constants that the
            class computes itself keep their digits.

    Raises:
        BundleError: transformers cannot load it, or would draw a weight at random.
    """
    if not lift:
        return _load(checkpoint, dtype, config)
    model = _load(checkpoint, "float32", config)
    if dtype != "float32":
        model.load_state_dict(_load(checkpoint, dtype, config).state_dict())
    if sum(parameter.numel() for parameter in model.parameters()) < _LARGE:
        return model.double()
    widen_as_called(model)
    return model


def empty_model(checkpoint: CheckpointFiles, dtype: str, *, text: bool = False) -> Any:
    """The model of a checkpoint's config without weights: its own class, parameters on the meta device, buffers real.

    Args:
        checkpoint: A folder with ``config.json``.
        dtype: What ``from_pretrained`` would load in; parameters that the class keeps in float32 are float32.
        text: Without the parts that see and hear, which a bundle's own folder has no weights of.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig

    kind = getattr(torch, dtype)
    with _quiet():
        config = AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False)
        with init_empty_weights(include_buffers=False):
            if text:
                model = build_language_model(config, "eager", experts_implementation="eager", dtype=kind)
            else:
                found = _class_of(checkpoint)
                make = getattr(found, "_from_config", None) or found.from_config
                model = make(config, attn_implementation="eager", experts_implementation="eager", dtype=kind)
    model.tie_weights()
    if dtype != "float32":
        kept = [re.compile(name.replace("*", ".*")) for name in model._get_dtype_plan(kind)]
        for name, parameter in model.named_parameters():
            if any(pattern.search(name) for pattern in kept):
                parameter.data = parameter.data.float()
    return model.eval()


def _load(checkpoint: CheckpointFiles, dtype: str, config: Path) -> Any:
    from transformers import AutoConfig

    name = checkpoint.gguf or checkpoint.folder.name
    arguments: dict[str, Any] = {"gguf_file": checkpoint.gguf} if checkpoint.gguf else {"use_safetensors": True}
    folder = config if checkpoint.gguf else checkpoint.folder
    try:
        with _quiet(), whole_gguf():
            given = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            ask_dense(given)
            for part in (given, given.get_text_config(decoder=True)):
                part.return_dict = True  # how outputs are returned, not what they are
            model, found = _class_of(checkpoint).from_pretrained(
                checkpoint.folder,
                dtype=getattr(torch, dtype),
                attn_implementation="eager",
                experts_implementation="eager",
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                config=given,
                **arguments,
            )
            model = make_dense(model, getattr(torch, dtype))
            if checkpoint.adapter is not None:
                model = merge_adapter(model, checkpoint.adapter)
    except Exception as error:  # transformers raises ValueError, KeyError, OSError, validation errors …
        raise BundleError(f"{name}: transformers cannot load the reference from it ({_reason(error)})") from error
    absent = sorted(found["missing_keys"])
    if absent:
        raise BundleError(f"{name}: its weights lack {absent[0]} ({len(absent)} missing): no reference")
    return _takes_text(model, name).eval()


def _takes_text(model: Any, name: str) -> Any:
    """The model, or the causal model inside one that does not run without an image or a sound, such as BLIP-2."""
    parameters = inspect.signature(model.forward).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    needed = [each for each in needed if each != "input_ids"]
    if not needed:
        return model
    inner = [part for part in model.modules() if part is not model and getattr(part, "can_generate", bool)()]
    if not inner:
        raise BundleError(f"{name}: {type(model).__name__} does not run without {needed[0]}: no reference")
    return inner[0]


def text_weight_name(name: str) -> str:
    """The name that a weight of a multimodal model has in its language model alone.

    ``model.language_model.layers.0…`` and ``language_model.model.layers.0…`` are ``model.layers.0…`` there.
    """
    parts = name.split(".")
    inner = next((part for part in parts if part in _TEXT_PARTS), None)
    if inner is not None:
        parts.remove(inner)
    return ".".join(parts)


def _class_of(checkpoint: CheckpointFiles) -> Any:
    """The class that the config names, where transformers has it and it generates; the automatic one otherwise."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM

    if checkpoint.gguf:
        return AutoModelForCausalLM
    config = AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False)
    named = named_class(config)
    if named is not None:
        return named
    wraps = config.get_text_config(decoder=True) is not config
    kinds = [AutoModelForMultimodalLM, AutoModelForCausalLM]
    return next((kind for kind in kinds if wraps and type(config) in kind._model_mapping), AutoModelForCausalLM)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep progress bars and advice of transformers off the terminal: what matters of it is raised here."""
    with quiet_libraries(), contextlib.redirect_stderr(io.StringIO()):
        yield


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    return lines_of(error)[0][:300]
