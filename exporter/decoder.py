"""The module that is traced: ids, mask, positions and pasts in; logits and presents out; no family named.

The model is transformers' own. Three of its official seams are used, so that nothing is re-implemented: the cache
argument (:class:`ExplicitCache`), the attention interface (our function picks the mask of the layer and calls the
model's own eager attention), and module hooks (probes: names for values at module borders).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from exporter.lift import lifted
from exporter.spec import ExportOptions, LayerSpec, ModelSpec

__all__ = ["ATTENTION", "Decoder", "ExplicitCache", "attention_mask_4d", "probe"]

ATTENTION = "kvparity"
_MASKS: ContextVar[dict[int | None, Tensor]] = ContextVar("masks")
Pair = tuple[Tensor, Tensor]


@torch.library.custom_op("kvparity::probe", mutates_args=())
def probe(value: Tensor, name: str) -> Tensor:
    """Name a value: traced as a node that the exporter turns into the ONNX value's name."""
    return value.clone()


@probe.register_fake
def _(value: Tensor, name: str) -> Tensor:
    return torch.empty_like(value)


class ExplicitCache:
    """The least that transformers' layers ask of a cache: returns past and new rows joined, keeps what to hand out.

    Args:
        spec: The model.
        past: (key, value) per slot, each (batch, kv_heads, rows, head_dim); None for a prefill.
        bounded: Keep at most window - 1 rows in sliding slots.
    """

    is_compileable = False
    is_sliding: tuple[bool, ...] = ()
    layers: tuple[Any, ...] = ()

    def __init__(self, spec: ModelSpec, past: Sequence[Pair] | None, *, bounded: bool) -> None:
        self._slot_of = {slot.layer: slot for slot in spec.slots}
        self._past, self._bounded = past, bounded
        self.present: dict[int, Pair] = {}

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> Pair:
        """Join the past and new rows of a layer: (batch, kv_heads, past + sequence, head_dim)."""
        slot = self._slot_of[layer_idx]
        if self._past is not None:
            past_key, past_value = self._past[slot.slot]
            key, value = torch.cat([past_key, key], dim=2), torch.cat([past_value, value], dim=2)
        key = probe(key, f"layers.{layer_idx}.self_attn.key")
        value = probe(value, f"layers.{layer_idx}.self_attn.value")
        keep = slot.window - 1 if slot.window is not None and self._bounded else None
        self.present[slot.slot] = (_newest(key, keep), _newest(value, keep))
        return key, value

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Never used for positions: those are an input."""
        return 0


def _newest(rows: Tensor, keep: int | None) -> Tensor:
    """The last ``keep`` rows; the start is clamped in the graph because engines disagree on negative starts."""
    if keep is None:
        return rows
    total = rows.shape[2]
    return rows[:, :, torch.sym_max(total - keep, 0) : total]


def attention_mask_4d(
    attention_mask: Tensor, queries: int, rows: int, window: int | None, dtype: torch.dtype
) -> Tensor:
    """Additive mask of one layer kind; every entry finite, so that a fully masked row gives numbers, not NaN.

    Args:
        attention_mask: (batch, total) int64 over the full history, 1 = live.
        queries: Tokens of this call; they are the last slots.
        rows: Cache rows that the layer sees, this call's included; they are the last slots too.
        window: Keys that a query sees, itself included; None for all.
        dtype: Of the result.

    Returns:
        (batch, 1, queries, rows): 0 where a query may look, a large negative number elsewhere.
    """
    total = attention_mask.shape[1]
    query = torch.arange(queries, device=attention_mask.device)[:, None] + (total - queries)
    key = torch.arange(rows, device=attention_mask.device)[None, :] + (total - rows)
    seen = key <= query
    if window is not None:
        seen = torch.logical_and(seen, query - key < window)
    live = attention_mask[:, total - rows : total] != 0
    seen = torch.logical_and(seen[None], live[:, None, :])
    blocked = max(torch.finfo(dtype).min, -1e9)
    return torch.where(seen[:, None], torch.zeros((), dtype=dtype), torch.full((), blocked, dtype=dtype))


def _attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
    """Attention interface: the layer's mask, then the model's own eager attention."""
    index = module.layer_idx
    query = probe(query, f"layers.{index}.self_attn.query")
    eager = sys.modules[type(module).__module__].eager_attention_forward
    output, weights = eager(module, query, key, value, _MASKS.get()[index], **kwargs)
    return probe(output, f"layers.{index}.self_attn.context"), weights


def register_attention() -> None:
    """Make :data:`ATTENTION` known to transformers; called when a model is built for tracing."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, _attention)


class Decoder(nn.Module):
    """(input_ids, attention_mask, position_ids, past) -> (logits, presents), for torch.export.

    Args:
        model: A transformers causal language model whose attention implementation is :data:`ATTENTION`.
        spec: Its description.
        options: How it is exported.
        lift: Trace in float64 (see :mod:`exporter.lift`).
    """

    def __init__(self, model: Any, spec: ModelSpec, options: ExportOptions, *, lift: bool) -> None:
        super().__init__()
        self.model = model
        self._spec, self._options, self._lift = spec, options, lift
        parameters = inspect.signature(model.forward).parameters
        self._cache_argument = "cache" if "cache" in parameters else "past_key_values"

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: Sequence[Pair] | None = None
    ) -> tuple[Tensor, list[Pair]]:
        """Run one call.

        Args:
            input_ids: (batch, sequence) int64.
            attention_mask: (batch, past + sequence) int64.
            position_ids: (batch, sequence) int64.
            past: (key, value) per slot; None for a prefill.

        Returns:
            logits (batch, sequence or 1, vocab) and (key, value) per slot.
        """
        cache = ExplicitCache(self._spec, past, bounded=self._options.bounded)
        with lifted(self._lift), _use_masks(self._masks(input_ids, attention_mask, past)):
            arguments = {self._cache_argument: cache, "use_cache": True}
            if self._options.logits == "last":
                arguments["logits_to_keep"] = 1
            logits = self.model(input_ids=input_ids, position_ids=position_ids, **arguments).logits
            if logits.dtype not in (torch.float32, torch.float64):
                logits = logits.to(torch.float32)
        return logits, [cache.present[slot.slot] for slot in self._spec.slots]

    def _masks(
        self, input_ids: Tensor, attention_mask: Tensor, past: Sequence[Pair] | None
    ) -> dict[int | None, Tensor]:
        """The mask of every layer; layers of one window and row count share one tensor."""
        dtype = next(self.model.parameters()).dtype
        queries = input_ids.shape[1]
        made: dict[tuple[str, int | None], Tensor] = {}
        masks: dict[int | None, Tensor] = {}
        for layer in self._spec.layers:
            kind = (layer.kind, layer.window)
            if kind not in made:
                rows = queries + (0 if past is None else past[layer.slot][0].shape[2])
                made[kind] = attention_mask_4d(attention_mask, queries, rows, layer.window, dtype)
            masks[layer.index] = made[kind]
        return masks


@contextmanager
def _use_masks(masks: dict[int | None, Tensor]) -> Iterator[None]:
    token = _MASKS.set(masks)
    try:
        yield
    finally:
        _MASKS.reset(token)


def add_probes(model: Any, layers: Sequence[LayerSpec]) -> None:
    """Hook every module inside the decoder layers, the embeddings and the final norm, so that outputs get names.

    The name of a value is the path of the module that made it, from the base model on: ``layers.3.mlp.down_proj``.
    """
    base = getattr(model, model.base_model_prefix, model)
    for path, module in base.named_modules():
        if path and not isinstance(module, nn.ModuleList) and "rotary" not in path and "act_fn" not in path:
            module.register_forward_hook(_named(path))
    model.get_output_embeddings().register_forward_hook(_named("lm_head"))


def _named(path: str) -> Callable[..., Any]:
    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return probe(output, path)
        if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
            return (probe(output[0], path), *output[1:])
        return output

    return hook
