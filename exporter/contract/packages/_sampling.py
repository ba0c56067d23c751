"""The model's own generation settings: which of them a tool takes over, and which it does not know."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.model_files import read_settings

__all__ = ["generation_settings", "unheeded"]

# What transformers takes where generation_config.json says nothing; every setting that changes which tokens come out.
_DEFAULTS: dict[str, Any] = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": None,
    "top_h": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": None,
    "max_new_tokens": None,
    "stop_strings": None,
    "num_beams": 1,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "sequence_bias": None,
    "exponential_decay_length_penalty": None,
    "guidance_scale": None,
    "penalty_alpha": None,
}
_SAMPLED = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")


def generation_settings(bundle: Bundle) -> dict[str, Any]:
    """What the model's generation_config.json sets other than transformers' defaults, by transformers' names.

    Settings of sampling are left out where the model does not sample.

    Raises:
        BundleError: The file is no JSON object.
    """
    found = read_settings(bundle.root / "generation_config.json")
    given = {name: found[name] for name in _DEFAULTS if found.get(name) not in (None, [], {}, _DEFAULTS[name])}
    return {name: value for name, value in given.items() if given.get("do_sample") or name not in _SAMPLED}


def unheeded(bundle: Bundle, heeded: Collection[str]) -> str:
    """The settings that a tool does not take over, with their values, in words; empty where it takes all."""
    names = [name for name in generation_settings(bundle) if name not in heeded]
    return ", ".join(f"`{name}` {_short(generation_settings(bundle)[name])}" for name in names)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
