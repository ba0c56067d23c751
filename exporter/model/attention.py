"""The attention that a traced model computes: our function behind transformers' attention interface.

It picks the mask of the layer and calls the model's own eager attention; profiles that have ONNX's Attention operator
write it with that, in one of three forms (see :class:`Spelling`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kvparity.exporter.contract.errors import ExportError
from kvparity.exporter.contract.modules import decoder_stack
from kvparity.exporter.contract.spec import ExportOptions, ModelSpec, past_name
from kvparity.exporter.model.banded_attention import attend_banded, band_mask
from kvparity.exporter.model.grouped_queries import can_group, grouped_attention
from kvparity.exporter.model.probe import probe
from kvparity.exporter.model.standard_operators import attend, is_standard

__all__ = ["ATTENTION", "Masks", "Spelling", "number_layers", "register_attention", "takes_few", "use"]

ATTENTION = "kvparity"


@dataclass(frozen=True)
class Spelling:
    """How attention is written.

    Attributes:
        operator: As ONNX's Attention, where a layer asks for nothing that it lacks.
        grouped: A group's queries are rows of one head. ONNX Runtime multiplies head by head: with few queries this
            reads a key-value head once instead of once per query head, and no product has one row, which it sums in an
            order of its own; with many it gains nothing.
        by_token: How the rows of a group lie (:func:`exporter.model.grouped_queries.grouped_attention`).
        banded: Sliding layers multiply blocks near the diagonal only, whatever the number of tokens.
    """

    operator: bool = False
    grouped: bool = False
    by_token: bool = False
    banded: bool = False

    @classmethod
    def of(cls, spec: ModelSpec, options: ExportOptions, inputs: Mapping[str, Tensor]) -> Spelling:
        """The form that suits a graph, told by its inputs (:mod:`exporter.contract.ports`)."""
        operator = options.profile in ("modern", "ort")
        if options.groups_queries:  # a pass makes GroupQueryAttention of the operator
            return cls(operator)
        tokens, few = inputs["input_ids"].shape[1], takes_few(spec, options, inputs)
        own = options.profile == "ort"
        return cls(operator, grouped=few, by_token=own, banded=own and not few and not isinstance(tokens, int))


def takes_few(spec: ModelSpec, options: ExportOptions, inputs: Mapping[str, Tensor]) -> bool:
    """Whether a graph's calls have one token, or mostly one, as the dynamic layout's decode graph."""
    if options.layout == "dynamic":
        return any(past_name(slot.slot, part) in inputs for slot, part in spec.cache_names())
    return isinstance(tokens := inputs["input_ids"].shape[1], int) and tokens == 1


class Masks(dict[int, Tensor]):
    """Additive masks (batch, 1, sequence, rows) by layer; knows which layers asked.

    ``windows`` has the layers whose rows end with the call's own, after at most a window of others, or a ring: what
    the blocks of :mod:`exporter.model.banded_attention` take. Sliding layers with a buffer of every row do not.
    """

    def __init__(self, spec: ModelSpec, options: ExportOptions, masks: Mapping[int, Tensor]) -> None:
        super().__init__(masks)
        self._spec = spec
        self._asked: set[int] = set()
        self._bands: dict[tuple[int, int], Tensor] = {}
        self.windows = {
            layer.index: options.ring(spec.slot_of(layer)) or layer.window
            for layer in spec.layers
            if layer.window is not None and (options.layout == "dynamic" or options.ring(spec.slot_of(layer)))
        }

    def __getitem__(self, index: int) -> Tensor:
        self._asked.add(index)
        return super().__getitem__(index)

    def band(self, index: int) -> Tensor:
        """The blocks of a sliding layer's mask (:func:`~exporter.model.banded_attention.band_mask`), made once."""
        mask, window = self[index], self.windows[index]
        if (id(mask), window) not in self._bands:
            self._bands[id(mask), window] = band_mask(mask, window)
        return self._bands[id(mask), window]

    def of_kind(self, kind: str) -> Tensor:
        """The mask of all layers of a kind (:func:`exporter.model.mask_functions.mask_functions`)."""
        same = [layer.index for layer in self._spec.layers if layer.attends and layer.kind == kind]
        if not same:
            raise ExportError(f"{self._spec.model_type}: asks for a mask of {kind} layers, and has no such layer")
        chosen = self[same[0]]
        self._asked.update(same)
        return chosen

    def check(self) -> None:
        """Raise ExportError where a layer ran without the mask that it was meant to have."""
        missing = sorted(self.keys() - self._asked)
        if missing:
            raise ExportError(
                f"{self._spec.model_type}: the attention of layer {missing[0]} does not go through transformers' "
                "attention interface, so it cannot be given its mask"
            )


_MASKS: ContextVar[Masks] = ContextVar("masks")
_SPELLING: ContextVar[Spelling] = ContextVar("spelling")


@contextmanager
def use(masks: Masks, spelling: Spelling) -> Iterator[None]:
    """What attention sees while a model runs in this context."""
    before, token = _MASKS.set(masks), _SPELLING.set(spelling)
    try:
        yield
    finally:
        _MASKS.reset(before)
        _SPELLING.reset(token)


def register_attention() -> None:
    """Make :data:`ATTENTION` known to transformers; called when a model is built for tracing."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, _attention)


def number_layers(model: Any) -> None:
    """Give each attention module the index of its layer where its caller alone knows it, as of tied blocks (Zamba).

    Raises:
        ExportError: Layers share one module, so that it does not tell whose mask and cache it uses.
    """
    owner: dict[Any, int] = {}
    for index, layer in enumerate(decoder_stack(model)[2]):
        for module in layer.modules():
            if hasattr(module, "q_proj") and hasattr(module, "layer_idx"):
                if owner.setdefault(module, index) != index:
                    raise ExportError(
                        f"{model.config.model_type}: layers {owner[module]} and {index} share an attention module, "
                        "which then does not tell whose mask and cache it uses"
                    )
                module.layer_idx = index if module.layer_idx in (None, -1) else module.layer_idx


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **kwargs: Any
) -> Any:
    """Attention interface: (output (batch, sequence, heads, head_dim), weights or None)."""
    index = module.layer_idx
    masks = _MASKS.get(None)  # none while a model is only being observed
    if masks is not None and attention_mask is not None:  # transformers makes none for this attention
        raise ExportError(f"layer {index} computes a mask of its own, which would be lost")
    query = probe(query, f"layers.{index}.self_attn.query")
    spelling, weights = _SPELLING.get(Spelling()), None
    standard = spelling.operator and is_standard(kwargs)
    if masks is not None and standard and spelling.banded and _is_long(masks, index, query):
        output = attend_banded(query, key, value, masks.band(index), masks.windows[index], **kwargs)
    else:
        eager = _operator if standard else sys.modules[type(module).__module__].eager_attention_forward
        mask = attention_mask if masks is None else _of_queries(masks[index], query.shape[2])
        if spelling.grouped and can_group(module, query, key):
            kwargs |= {"eager": eager, "by_token": spelling.by_token}
            output, weights = grouped_attention(module, query, key, value, mask, **kwargs)
        else:
            output, weights = eager(module, query, key, value, mask, **kwargs)
    return probe(output, f"layers.{index}.self_attn.context"), weights


def _operator(_module: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """Attention through ONNX's operator, with the signature of a model's eager attention."""
    return attend(*args, **kwargs), None


def _is_long(masks: Masks, index: int, query: Tensor) -> bool:
    """Whether a layer slides and sees all of the call's queries (see :func:`_of_queries`)."""
    return index in masks.windows and not isinstance(query.shape[2], int)


def _of_queries(mask: Tensor, queries: Any) -> Tensor:
    """The last rows of a mask: Gemma 4's sharing layers compute the last position only when no other is asked for."""
    known = isinstance(queries, int) and not (isinstance(mask.shape[2], int) and mask.shape[2] == queries)
    return mask[:, :, -queries:] if known else mask
