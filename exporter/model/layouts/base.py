"""What every layout's cache is: the object that transformers' layers call, and the mask of every layer."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from kvparity.exporter.contract.spec import (
    ExportOptions,
    LayerSpec,
    ModelSpec,
    SlotSpec,
    blocked_score,
    mask_name,
    past_name,
)
from kvparity.exporter.model.probe import probe

__all__ = ["LayoutCache", "Pair", "additive", "blocked", "by_batch", "open_cache"]

Pair = tuple[Tensor, Tensor]


class LayoutCache(ABC):
    """The least that transformers' layers ask of a cache, plus the masks that fit the rows it hands them.

    Args:
        spec: The model.
        options: How it is exported.
        inputs: The graph's inputs by port name.
        dtype: Of the mask.

    Attributes:
        present: What to hand out, by slot and part; filled while the model runs.
        asked: The state that a layer asked for last; None where the graph takes none.
    """

    is_compileable = False
    is_sliding: tuple[bool, ...] = ()
    layers: tuple[Any, ...] = ()
    counts = False  # whether the model asks for the number of tokens before this call

    def __init__(
        self, spec: ModelSpec, options: ExportOptions, inputs: Mapping[str, Tensor], dtype: torch.dtype
    ) -> None:
        self.spec, self.options, self.inputs, self.dtype = spec, options, inputs, dtype
        self.present: dict[tuple[int, str], Tensor] = {}
        self.asked: Tensor | None = None
        self._heads = 0  # of the state asked for, how many were read one by one
        self._slot_of = {slot.layer: slot for slot in spec.slots}

    @abstractmethod
    def join(self, slot: SlotSpec, key: Tensor, value: Tensor) -> tuple[Pair, Pair]:
        """Take the new rows of a slot; return the rows that its layers see and the rows to hand out."""

    @abstractmethod
    def mask(self, layer: LayerSpec) -> Tensor:
        """Additive mask of a layer: (batch, 1, sequence, rows), every entry finite."""

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> Pair:
        """Called by a layer with its new rows; gives the rows that it sees: (batch, kv_heads, rows, head_dim)."""
        slot = self._slot_of[layer_idx]
        seen, (self.present[slot.slot, "key"], self.present[slot.slot, "value"]) = self.join(slot, key, value)
        return seen

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> None:
        """None: a layer then asks :meth:`update_conv_state` for the columns before its own."""
        return None

    def update_conv_state(self, new: Tensor, layer_idx: int, **_: Any) -> Tensor:
        """Called by a layer with the columns that it convolves, (batch, channels, sequence).

        Returns:
            (batch, channels, kernel - 1 + sequence): the columns before them, zeros before the first token, and them.
        """
        slot = self._slot_of[layer_idx]
        past = self.inputs.get(past_name(slot.slot, "conv_state"))
        columns = slot.shape("conv_state", 1, 0)[-1]
        joined = torch.nn.functional.pad(new, (columns, 0)) if past is None else torch.cat([past, new], dim=2)
        self.present[slot.slot, "conv_state"] = self.newest(joined, columns)
        return joined

    def newest(self, joined: Tensor, columns: int) -> Tensor:
        """The last columns of (batch, channels, columns + sequence) that a convolution keeps."""
        return joined[:, :, joined.shape[2] - columns : joined.shape[2]]

    def live(self) -> Tensor:
        """Which of the call's tokens are no padding: (batch, sequence) int64."""
        mask, tokens = self.inputs["attention_mask"], self.inputs["input_ids"].shape[1]
        return mask[:, mask.shape[1] - tokens : mask.shape[1]]

    def real(self) -> Tensor | None:
        """Which of a call's tokens are not beyond its end: (sequence,) bool; None where all are its own."""
        return None

    def follows(self) -> Tensor | None:
        """Whether the call is one token that follows others, a bool; None where the sizes of the inputs say it."""
        return None

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> None:
        """Called by a layer for its state before the call.

        None, so that it takes its form for many tokens, which is ours; that finds the state in ``asked``.
        """
        slot = self._slot_of[layer_idx]
        self.asked = self.inputs.get(past_name(slot.slot, slot.states[-1].part))
        self._heads = 0
        return None

    def next_state(self) -> Tensor | None:
        """The state asked for, (batch, channels, size); the next head's where a layer computes its heads one by one."""
        if self.asked is None or self.asked.ndim == 3:
            return self.asked
        self._heads += 1
        return self.asked[:, self._heads - 1]

    def update_recurrent_state(self, state: Tensor, layer_idx: int, **_: Any) -> Tensor:
        """Called by a layer with its state after the call, in the contract's shape."""
        slot = self._slot_of[layer_idx]
        self.present[slot.slot, slot.states[-1].part] = state
        return state

    def near(self, layer: LayerSpec, query: Tensor, key: Tensor, before: Any = 0) -> Tensor:
        """Which keys are near enough for a layer with a window.

        Args:
            layer: Sliding, or chunked: transformers counts chunks from a row's first live token.
            query: (queries, 1), or (batch, queries, 1): numbers of slots, ``before`` less than they are.
            key: (1, rows), or (batch, 1, rows): the same.
            before: Slots before the first that is counted.

        Returns:
            (queries, rows), or (batch, queries, rows) where rows of the batch differ.
        """
        if layer.kind != "chunked":
            return query - key < layer.window
        padding = self.inputs["attention_mask"].argmax(dim=1)[:, None, None]
        position = torch.maximum(query + before - padding, torch.zeros((), dtype=torch.int64))
        return query - key <= torch.remainder(position, layer.window)

    def get_seq_length(self, layer_idx: int | None = None) -> Any:
        """Tokens before this call, for layers that ask and for models that count positions themselves.

        0 where positions are an input.
        """
        return self.tokens_before() if self.counts or layer_idx is not None else 0

    def tokens_before(self) -> Any:
        """Tokens of earlier calls: a size or a tensor."""
        return 0 if self.past(self.spec.slots[0]) is None else self._total() - self.inputs["input_ids"].shape[1]

    def _total(self) -> Any:
        return self.inputs["attention_mask"].shape[1]

    @property
    def keep_logits(self) -> int | Tensor:
        """What transformers calls ``logits_to_keep``: how many last positions, or which; 0 for all."""
        return 1 if self.options.logits == "last" else 0

    def past(self, slot: SlotSpec) -> Pair | None:
        """The rows handed in, or None where the graph takes none."""
        names = [past_name(slot.slot, part) for part in ("key", "value")]
        return (self.inputs[names[0]], self.inputs[names[1]]) if names[0] in self.inputs else None

    def masks(self) -> dict[int, Tensor]:
        """The mask of every layer by index; layers of one kind and window share a tensor."""
        made: dict[tuple[str, int | None], Tensor] = {}
        attending = [layer for layer in self.spec.layers if layer.attends]
        for layer in attending:
            kind = (layer.kind, layer.window)
            if kind not in made:
                given = self.inputs.get(mask_name(layer.window))
                made[kind] = probe(self.mask(layer), f"mask.{layer.kind}") if given is None else given
        return {layer.index: made[layer.kind, layer.window] for layer in attending}

    def named(self, slot: SlotSpec, key: Tensor, value: Tensor) -> Pair:
        """Probes on the rows that a layer sees."""
        prefix = f"layers.{slot.layer}.self_attn"
        return probe(key, f"{prefix}.key"), probe(value, f"{prefix}.value")


def by_batch(seen: Tensor) -> Tensor:
    """(queries, rows) as (1, queries, rows), which rows of a batch share."""
    return seen if seen.ndim == 3 else seen[None]


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """(batch, queries, rows) bool to (batch, 1, queries, rows): 0 where a query may look, far below 0 elsewhere.

    Finite, so that a fully masked row gives numbers and not NaN.
    """
    return torch.where(seen[:, None], torch.zeros((), dtype=dtype), torch.full((), blocked(dtype), dtype=dtype))


def blocked(dtype: torch.dtype) -> float:
    """What a mask of a dtype adds where a query may not look."""
    return blocked_score(str(dtype).removeprefix("torch."))


def open_cache(
    spec: ModelSpec, options: ExportOptions, inputs: Mapping[str, Tensor], dtype: torch.dtype
) -> LayoutCache:
    """The cache of the layout that the options name."""
    module = importlib.import_module(f"kvparity.exporter.model.layouts.{options.layout}")
    return cast(LayoutCache, module.Cache(spec, options, inputs, dtype))
