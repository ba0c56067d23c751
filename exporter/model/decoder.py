"""The module that is traced: ids, mask, positions and pasts in; logits and presents out; the same for all families.

The model is transformers' own. Three of its official extension points are used, so that nothing is re-implemented: the
cache argument (:mod:`exporter.model.layouts`), the attention interface (:mod:`exporter.model.attention`), and module
hooks (probes: names for values at module borders).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from kvparity.exporter.contract.float64 import lifted
from kvparity.exporter.contract.modules import accepted, cache_argument, decoder_stack, named_parts, takes_own_mask
from kvparity.exporter.contract.spec import ExportOptions, LayerSpec, ModelSpec
from kvparity.exporter.model.attention import Masks, Spelling, takes_few, use
from kvparity.exporter.model.complex_pairs import ComplexAsPairs, tables_like
from kvparity.exporter.model.layouts.base import open_cache
from kvparity.exporter.model.mask_functions import calls_interface, mask_functions
from kvparity.exporter.model.probe import probe
from kvparity.exporter.model.rope import use_tables
from kvparity.exporter.model.states import use_states

__all__ = ["NO_POSITIONS", "Decoder", "add_probes"]

NO_POSITIONS = "positions that only the rotary embedding may read"
_TABLES = ("cos", "sin")
_LAYER_INPUTS = ("hidden_states", "attention_mask", "position_embeddings")  # named elsewhere, or not values of a layer


class Decoder(nn.Module):
    """Inputs by port name -> outputs in port order, for torch.export.

    Args:
        model: A transformers causal language model with the attention of :mod:`exporter.model.attention`.
        spec: Its description.
        options: How it is exported.
        lift: Trace in float64 (see :mod:`exporter.contract.float64`).

    Attributes:
        bounded: Whether no call goes past the model's positions: what a model cuts out of a table of that many rows
            then has the length that it asks for.
    """

    def __init__(self, model: Any, spec: ModelSpec, options: ExportOptions, *, lift: bool) -> None:
        super().__init__()
        self.model = model
        self._spec, self._options, self.lift = spec, options, lift
        self._cache_argument, self._accepted = cache_argument(model), accepted(model)
        self._own_mask = takes_own_mask(model)
        attends = any(layer.attends for layer in spec.layers)
        self._interface = not attends or calls_interface(model)
        self._counts = attends and not (self._interface and "position_ids" in self._accepted)
        self.bounded = self._counts and options.layout == "dynamic"

    def forward(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        """Run one call.

        Args:
            inputs: Every port of the graph by name, with the shapes of :mod:`exporter.contract.ports`.

        Returns:
            logits (batch, sequence or 1, vocab), then every part of every slot.
        """
        dtype = next(self.model.parameters()).dtype
        if self.bounded and "attention_mask" in inputs:
            torch._check(inputs["attention_mask"].shape[1] <= self._spec.max_position)
        cache = open_cache(self._spec, self._options, inputs, dtype)
        masks = Masks(self._spec, self._options, cache.masks())
        spelling = Spelling.of(self._spec, self._options, inputs)
        states: AbstractContextManager[None] = nullcontext()
        if self._spec.has_states:
            few = takes_few(self._spec, self._options, inputs)
            states = use_states(self.model, cache, few=few)
        cache.counts = self._counts
        own = nullcontext() if self._interface else mask_functions(self.model, masks.of_kind)
        with lifted(self.lift), ComplexAsPairs(), use(masks, spelling), use_tables(inputs), states, own:
            arguments: dict[str, Any] = {self._cache_argument: cache, "use_cache": True}
            if not self._interface:  # distances of ALiBi are counted in it
                arguments["attention_mask"] = inputs.get("attention_mask")
            if self._own_mask:
                arguments["attention_mask"] = cache.live()
            if self._options.logits == "last":
                arguments["logits_to_keep"] = cache.keep_logits
            ids, positions = inputs["input_ids"], inputs.get("position_ids")
            if positions is None:
                positions = probe(torch.zeros_like(ids), NO_POSITIONS)
            arguments["position_ids"] = positions
            known = {name: value for name, value in arguments.items() if name in self._accepted}
            logits = self.model(input_ids=ids, **known).logits
        masks.check()
        presents = [cache.present[slot.slot, part] for slot, part in self._spec.cache_names()]
        return [logits if self.lift else logits.float(), *presents]


def add_probes(model: Any, layers: Sequence[LayerSpec]) -> None:
    """Hook the embeddings, rotary tables, every module inside the decoder layers and the head: outputs get names.

    The name of a value is the path of the module that made it, from the base model on: ``layers.3.mlp.down_proj``;
    ``rotary_emb.sliding_attention.cos`` for rotary tables; ``layers.3.per_layer_input`` for what a layer is given
    besides the hidden states.
    """
    for path, module in named_parts(model):
        if "rotary" in path:
            module.register_forward_hook(_named_tables(path), with_kwargs=True)
        elif path and not isinstance(module, nn.ModuleList) and "act_fn" not in path:
            module.register_forward_hook(_named(path))
    for index, module in enumerate(decoder_stack(model)[2][: len(layers)]):
        module.register_forward_pre_hook(_named_inputs(module, f"layers.{index}"), with_kwargs=True)
    model.get_output_embeddings().register_forward_hook(_named("lm_head"))


def _named(path: str) -> Callable[..., Any]:
    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return probe(output, path)
        if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
            return (probe(output[0], path), *output[1:])
        return output

    return hook


def _named_tables(path: str) -> Callable[..., Any]:
    """Rotary modules return (cos, sin), one pair per layer kind where the kind is an argument."""

    def hook(_module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        kind = [value for value in (*args, *kwargs.values()) if isinstance(value, str)]
        named = zip(output, _TABLES, strict=True)
        return tables_like(output, [probe(table, ".".join([path, *kind, part])) for table, part in named])

    return hook


def _named_inputs(module: nn.Module, path: str) -> Callable[..., Any]:
    """Tensors that a layer is given besides the hidden states, such as per-layer embeddings."""
    names = list(inspect.signature(module.forward).parameters)

    def wanted(name: str, value: Any) -> bool:
        return isinstance(value, Tensor) and value.is_floating_point() and name not in _LAYER_INPUTS

    def hook(_module: Any, args: Any, kwargs: Any) -> Any:
        named = [
            probe(value, f"{path}.{name}") if wanted(name, value) else value
            for name, value in zip(names, args, strict=False)
        ]
        rest = {
            name: probe(value, f"{path}.{name}") if wanted(name, value) else value for name, value in kwargs.items()
        }
        return (*named, *args[len(named) :]), rest

    return hook
