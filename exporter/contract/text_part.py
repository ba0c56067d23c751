"""The language model of a config: its causal class, or the multimodal class around a text config that has none."""

from __future__ import annotations

from typing import Any

__all__ = ["build_language_model", "named_class"]


def named_class(config: Any) -> Any:
    """The class that a config names among its ``architectures``, where it is transformers' own and generates.

    Text parts such as Emu 3's have a causal class that no automatic class maps them to. None where there is none.
    """
    import transformers

    kinds = (getattr(transformers, name, None) for name in config.architectures or ())
    fitting = (kind for kind in kinds if kind is not None and getattr(kind, "config_class", None) is type(config))
    return next((kind for kind in fitting if kind.can_generate()), None)


def build_language_model(config: Any, attention: str, **arguments: Any) -> Any:
    """A model that generates text, without weights' values; of a multimodal class, without what sees and hears.

    Args:
        config: A text config, or a multimodal one whose text config has no causal class.
        attention: Attention implementation of the language model.
        **arguments: For ``from_config``.
    """
    from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM

    named = named_class(config)
    if type(config) in AutoModelForCausalLM._model_mapping and config.get_text_config(decoder=True) is config:
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention, **arguments)
    if type(config) not in AutoModelForMultimodalLM._model_mapping and named is not None:
        arguments.pop("trust_remote_code", None)
        return named._from_config(config, attn_implementation=attention, **arguments)
    model = AutoModelForMultimodalLM.from_config(config, attn_implementation="eager", **arguments)
    model.config.get_text_config(decoder=True)._attn_implementation = attention
    words, head = model.get_input_embeddings(), model.get_output_embeddings()
    holders = (model, getattr(model, model.base_model_prefix, model))
    for holder in dict.fromkeys(holders):
        for name, child in list(holder.named_children()):
            if child is not head and words not in set(child.modules()) and any(True for _ in child.parameters()):
                setattr(holder, name, None)  # a tower: text alone never calls it
    return model
