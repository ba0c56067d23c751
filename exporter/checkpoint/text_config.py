"""The config of a checkpoint's language model, with the rules of loading and of the multimodal model around it.

Two things are not in the text config's own words: whether the head is the embedding, which transformers decides from
the wrapper's config and from the stored values; and which scales of the text model the wrapper leaves out.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kvparity.exporter.contract.text_part import named_class

if TYPE_CHECKING:
    from kvparity.exporter.checkpoint.source import StoredTensor

__all__ = ["model_class", "text_config"]

_WITHOUT_EFFECT = {"logit_scale": 1.0, "logits_scaling": 1.0, "final_logit_softcapping": None}
_BLOCK = 1 << 24  # bytes compared at once


def model_class(config: Any) -> Any:
    """The class that generates text from a config: the multimodal one around a text config, a causal one otherwise.

    None where transformers has no such class.
    """
    from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM

    wraps = config.get_text_config(decoder=True) is not config
    for kind in (AutoModelForMultimodalLM, AutoModelForCausalLM) if wraps else (AutoModelForCausalLM,):
        if type(config) in kind._model_mapping:
            return kind._model_mapping[type(config)]
    return named_class(config)


def text_config(config: Any, stored: Mapping[str, StoredTensor]) -> Any:
    """The text config, changed to say what transformers does with these files.

    Args:
        config: As read.
        stored: The checkpoint's tensors by the names that they have in the text model; empty where they are unknown.
    """
    text = config.get_text_config(decoder=True)
    text.return_dict = True  # outputs by name; transformers' own models fail without
    if hasattr(text, "auto_map"):  # names Python code that lies beside the checkpoint; it is neither run nor copied
        del text.auto_map
    if text is not config and model_class(text) is None and model_class(config) is not None:
        return config  # only the multimodal class computes logits of its text
    if text is not config and model_class(config) is not None:
        _heed_wrapper(config, text)
    if getattr(text, "tie_word_embeddings", False) and _both_heads_differ(model_class(text), stored):
        text.tie_word_embeddings = False
    return text


def _heed_wrapper(config: Any, text: Any) -> None:
    """Tie as the multimodal model does, and leave out the scales of the text model that it does not apply."""
    import torch
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=True):
        wrapper = model_class(config)._from_config(config, dtype=torch.float32)
    head = wrapper.get_output_embeddings()
    path = next((name for name, module in wrapper.named_modules() if module is head), None)
    if path is not None:
        text.tie_word_embeddings = f"{path}.weight" in wrapper.all_tied_weights_keys
    inner = model_class(text)
    if inner is None or any(isinstance(module, inner) for module in wrapper.modules()):
        return  # the text model's own head computes the logits
    forward = inspect.getsource(type(wrapper).forward)
    for name, neutral in _WITHOUT_EFFECT.items():
        if getattr(text, name, neutral) != neutral and name not in forward:
            setattr(text, name, neutral)


def _both_heads_differ(kind: Any, stored: Mapping[str, StoredTensor]) -> bool:
    """Whether both tensors of a pair that the class ties are stored, with different values: then both count."""
    pairs = getattr(kind, "_tied_weights_keys", None)
    for target, source in pairs.items() if isinstance(pairs, dict) else ():
        if target in stored and source in stored and not _equal(stored[target], stored[source]):
            return True
    return False


def _equal(one: StoredTensor, other: StoredTensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    for start in range(0, one.length, _BLOCK):
        count = min(_BLOCK, one.length - start)
        left, right = (np.fromfile(t.file, np.uint8, count, offset=t.offset + start) for t in (one, other))
        if not np.array_equal(left, right):
            return False
    return True
