"""A session on an adopted bundle: calls in our names and shapes become calls of the foreign graph, and back."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.dtypes import numpy_dtype
from kvparity.exporter.contract.errors import TraceError
from kvparity.exporter.contract.foreign import ExtraInput, Foreign, ForeignGraph
from kvparity.exporter.contract.spec import GraphKind, ModelSpec, Port
from kvparity.runners.adopt.ports import slot_of_port
from kvparity.runners.base import Array, Session

__all__ = ["AdoptedSession", "filled_rows", "foreign_feeds"]

_PAST = "past_key_values."


class AdoptedSession:
    """Any engine's session on foreign graphs, played in the dynamic layout of our contract.

    Args:
        bundle: An adopted bundle.
        inner: The engine's session, which takes and returns the graphs' own ports.
    """

    def __init__(self, bundle: Bundle, inner: Session) -> None:
        assert bundle.manifest.foreign is not None
        self._bundle, self._inner, self.info = bundle, inner, inner.info
        self._foreign: Foreign = bundle.manifest.foreign
        self._wide = inner.info.settings.get("dtype") == "float64"
        self._own: dict[int, Array] = {}  # by id of the cache that we returned: the graph's own, with all its rows
        self._kept: list[Array] = []

    def run(self, graph: GraphKind, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one graph once; see :class:`runners.base.Session`.

        Raises:
            TraceError: The call needs what the package does not have, such as a mask for padding.
        """
        foreign = self._foreign.graphs[graph]
        ports = {port.name: port for port in self._bundle.graph(foreign.run).spec.inputs}
        given = {name: self._own.get(id(array), array) for name, array in inputs.items()}
        feeds = foreign_feeds(foreign, ports, given, self._bundle.model, wide=self._wide)
        outputs = self._inner.run(foreign.run, feeds)
        return self._ours(foreign, filled_rows(foreign, outputs, inputs["attention_mask"].shape[1]))

    def close(self) -> None:
        """Free the engine's resources."""
        self._inner.close()

    def _ours(self, foreign: ForeignGraph, outputs: Mapping[str, Array]) -> dict[str, Array]:
        self._own, self._kept = {}, []
        found: dict[str, Array] = {}
        for name, own in foreign.outputs.items():
            if own not in outputs:
                continue
            array = outputs[own]
            if name == "logits":
                found[name] = array.astype(np.float32) if array.dtype.itemsize < 4 else array
                continue
            array = array.swapaxes(1, 2) if foreign.rows_first and array.ndim == 4 else array
            shown = self._compared(name, array)
            if shown is not array:
                self._own[id(shown)] = array
                self._kept.append(shown)
            found[name] = shown
        return found

    def _compared(self, name: str, array: Array) -> Array:
        """The rows of a cache that our contract names: a sliding one may keep some more."""
        slot = slot_of_port(self._bundle.model, name)
        if not self._foreign.extra_rows or slot.window is None or not self._bundle.options.bounded:
            return array
        return array[:, :, -(slot.window - 1) :] if array.shape[2] > slot.window - 1 else array


def filled_rows(foreign: ForeignGraph, outputs: Mapping[str, Array], total: int) -> dict[str, Array]:
    """Outputs of a foreign graph, of buffers of fixed size the rows that hold a token.

    Args:
        foreign: Whose port is which.
        outputs: By the graph's own names.
        total: Tokens so far, those of this call included.
    """
    return {
        name: array[:, :, : min(total, foreign.buffers[name])] if name in foreign.buffers else array
        for name, array in outputs.items()
    }


def _buffer(rows: Array, size: int, start: int) -> Array:
    """A past of the newest rows in a buffer that holds the first min(start, size) of its rows."""
    buffer = np.zeros((*rows.shape[:2], size, rows.shape[3]), rows.dtype)
    end = min(start, size)
    kept = min(rows.shape[2], end)
    buffer[:, :, end - kept : end] = rows[:, :, rows.shape[2] - kept :]
    return buffer


def foreign_feeds(
    foreign: ForeignGraph,
    ports: Mapping[str, Port],
    inputs: Mapping[str, Array],
    model: ModelSpec,
    *,
    wide: bool = False,
) -> dict[str, Array]:
    """Inputs of a foreign graph.

    Args:
        foreign: Whose port is which.
        ports: The graph's own inputs.
        inputs: ``input_ids``, ``attention_mask`` (batch, total), ``position_ids`` and pasts in our contract's shapes;
            pasts may be absent at the start of a conversation.
        model: Shapes of its slots.
        wide: Floating-point inputs stay float64.

    Raises:
        TraceError: Padding, where the graph takes no mask.
    """
    mask = inputs["attention_mask"]
    batch, tokens = inputs["input_ids"].shape
    first = mask.shape[1] - tokens == 0
    if "attention_mask" not in foreign.inputs and not mask.all():
        raise TraceError("the graph has no attention_mask, so padding cannot be played")
    feeds: dict[str, Array] = {}
    for name, own in foreign.inputs.items():
        array = inputs.get(name)
        if name.startswith(_PAST) and (array is None or first):
            slot = slot_of_port(model, name)
            array = np.zeros(slot.shape(name.split(".")[2], batch, foreign.empty_rows), np.float32)
        assert array is not None
        if own in foreign.buffers:
            array = _buffer(array, foreign.buffers[own], mask.shape[1] - tokens)
        if name.startswith(_PAST) and foreign.rows_first and array.ndim == 4:
            array = array.swapaxes(1, 2)
        dtype = np.dtype(np.float64) if wide and array.dtype.kind not in "iub" else numpy_dtype(ports[own].dtype)
        feeds[own] = np.ascontiguousarray(array.astype(dtype, copy=False))
    for extra in foreign.extra:
        feeds[extra.name] = _extra(extra, mask, tokens, first=first)
    return feeds


def _extra(extra: ExtraInput, mask: Array, tokens: int, *, first: bool) -> Array:
    total, dtype = mask.shape[1], numpy_dtype(extra.dtype)
    if extra.kind == "constant":
        value = 0.0 if first and extra.dtype == "bool" else extra.value  # use_cache_branch: no past, no cache branch
        return np.full([int(size) for size in extra.shape], value, dtype)
    if extra.kind == "cache_position":
        return np.arange(total - tokens, total, dtype=dtype)
    if extra.kind == "total":
        return np.full([int(size) for size in extra.shape], total, dtype)
    seen = mask.sum(axis=1) - (1 if extra.kind == "last_slots" else mask[:, total - tokens :].sum(axis=1))
    if not extra.shape:
        return np.asarray(seen[0], dtype)
    return seen.astype(dtype).reshape([len(seen), *([1] * (len(extra.shape) - 1))])
