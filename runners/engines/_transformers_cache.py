"""transformers' own cache, filled from the pasts of a call and read after it, in the shapes of the contract.

transformers keeps one column of a convolution more than the next output reads, and Mamba-2's states with their last two
axes the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from kvparity.exporter.contract.spec import ModelSpec, SlotSpec, StateSpec, past_name
from kvparity.runners.base import Array

__all__ = ["WatchedCache", "newest_columns"]


class WatchedCache:
    """A ``DynamicCache`` that holds the pasts of a call, and what the call adds to it.

    Args:
        config: The text config.
        spec: The model.
        inputs: The pasts by port name; none for an empty cache. A convolution's may have more columns than it needs.
        past: Token slots before the call.
        dtype: Of keys, values and columns.

    Attributes:
        cache: transformers' cache, to be given to the model.
    """

    def __init__(self, config: Any, spec: ModelSpec, inputs: Mapping[str, Array], past: int, dtype: Any) -> None:
        from transformers import DynamicCache

        self.cache: Any = DynamicCache(config=config)
        self._fresh: dict[tuple[int, str], list[Any]] = {}
        for slot in spec.slots if past else ():
            given: dict[str, Array] = {part: inputs[past_name(slot.slot, part)] for part in slot.parts}
            self._fill(slot, given, past, dtype)
        self._update, self._update_conv = self.cache.update, self.cache.update_conv_state
        self.cache.update, self.cache.update_conv_state = self._rows, self._columns

    def taken(self, slot: SlotSpec, part: str) -> Array:
        """Rows or columns that the call added to a slot; its whole state where it has neither."""
        layer = self.cache.layers[slot.layer]
        if (slot.layer, part) in self._fresh:
            return to_numpy(torch.cat(self._fresh[slot.layer, part], dim=1))
        if part == "conv_state":  # one token after others: transformers writes its column in place
            return to_numpy(torch.cat([columns[..., -1:] for columns in layer.conv_states.values()], dim=1))
        (state,) = layer.recurrent_states.values()
        return to_numpy(_turned(state, next(own for own in slot.states if own.part == part)))

    def _fill(self, slot: SlotSpec, given: Mapping[str, Array], past: int, dtype: Any) -> None:
        layer = self.cache.layers[slot.layer]
        if slot.kv_heads:
            keep = slot.kept_rows(past)
            pair = [to_torch(given[part], dtype) for part in ("key", "value")]
            layer.update(*(rows[:, :, rows.shape[2] - keep :] for rows in pair))
            if hasattr(layer, "cumulative_length"):
                layer.cumulative_length = past
        for state in slot.states:
            if state.part == "conv_state":
                columns = to_torch(newest_columns(given[state.part], state.shape[1]), dtype)
                for index, part in enumerate(columns.chunk(layer.number_of_states, dim=1)):
                    layer.update_conv_state(part.contiguous(), index, conv_kernel_size=state.shape[1] + 1)
            else:
                wide = torch.float64 if dtype == torch.float64 else torch.float32
                layer.update_recurrent_state(_turned(to_torch(given[state.part], wide), state).contiguous())

    def _rows(self, key: Any, value: Any, layer_idx: int, *rest: Any, **kwargs: Any) -> Any:
        self._fresh[layer_idx, "key"], self._fresh[layer_idx, "value"] = [key], [value]
        return self._update(key, value, layer_idx, *rest, **kwargs)

    def _columns(self, new: Any, layer_idx: int, *rest: Any, **kwargs: Any) -> Any:
        self._fresh.setdefault((layer_idx, "conv_state"), []).append(new)
        return self._update_conv(new, layer_idx, *rest, **kwargs)


def newest_columns(columns: Array, count: int) -> Array:
    """The last columns of (batch, channels, columns), zeros before them where there are fewer."""
    newest = columns[:, :, max(columns.shape[2] - count, 0) :]
    return np.pad(newest, ((0, 0), (0, 0), (count - newest.shape[2], 0)))


def _turned(state: Any, spec: StateSpec) -> Any:
    """Mamba-2's (batch, heads, value_dim, key_dim) as (batch, heads, key_dim, value_dim), and back; it has chunks."""
    return state.transpose(2, 3) if spec.part == "ssm_state" and spec.chunk else state


def to_torch(array: Array, dtype: Any) -> Any:
    """A tensor of that dtype; bfloat16 arrays too."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.astype(np.float32)).to(dtype)
    return torch.from_numpy(np.ascontiguousarray(array)).to(dtype)


def to_numpy(tensor: Any) -> Array:
    """An array of a tensor's dtype; bfloat16 is ml_dtypes'."""
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return np.asarray(tensor.detach().float().numpy().astype(ml_dtypes.bfloat16))
    return np.asarray(tensor.detach().contiguous().numpy())
