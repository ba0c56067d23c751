"""What a foreign graph does, measured by running it: empty pasts, batches, chunks, logits, rows that caches keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from kvparity.exporter.contract.errors import BundleError, KvparityError
from kvparity.exporter.contract.foreign import Foreign, ForeignGraph, Offer
from kvparity.exporter.contract.spec import DECODE, PREFILL, GraphKind, ModelSpec, Port, past_name
from kvparity.runners.adopt.session import filled_rows, foreign_feeds
from kvparity.runners.base import Array

__all__ = ["BATCH", "CACHES", "CHUNKS", "MASK", "Measured", "measure"]

BATCH, CHUNKS, MASK, CACHES = "a batch", "several tokens after a past", "attention_mask", "caches"
_TOKENS = 7  # no model has as many key-value heads as that, and rows where heads are expected show
Run = Callable[[GraphKind, Mapping[str, Array]], dict[str, Array]]


@dataclass(frozen=True)
class Measured:
    """What running a package told.

    Attributes:
        foreign: Whose port is which, with what was measured of caches.
        logits: ``all`` positions of a call, or the ``last``.
        bounded: Whether sliding caches drop rows.
    """

    foreign: Foreign
    logits: str
    bounded: bool


def measure(foreign: Foreign, ports: Mapping[GraphKind, Mapping[str, Port]], model: ModelSpec, run: Run) -> Measured:
    """Run a package on made-up tokens.

    Args:
        foreign: Whose port is which, by name alone.
        ports: The graphs' own inputs by name.
        model: What the checkpoint is.
        run: Runs one of the package's graphs.

    Raises:
        BundleError: It does not run a prompt of seven tokens; nothing can be judged then.
    """
    return _Trials(foreign, ports, model, run).measured()


class _Trials:
    def __init__(
        self, foreign: Foreign, ports: Mapping[GraphKind, Mapping[str, Port]], model: ModelSpec, run: Run
    ) -> None:
        self._foreign, self._ports, self._model, self._run = foreign, ports, model, run
        self._offers: list[Offer] = []

    def measured(self) -> Measured:
        outputs = self._prompt()
        logits = self._logits(outputs)
        self._cache_axes(outputs)
        bounded = self._sliding_rows()
        self._offer(BATCH, lambda: self._call(PREFILL, _TOKENS, batch=2), "2 rows")
        self._after_a_past(outputs)
        if "attention_mask" in self._foreign.graphs[DECODE].inputs:
            self._offer(MASK, lambda: self._call(PREFILL, _TOKENS, pads=2), "padding can be masked")
        else:
            self._offers.append(Offer(MASK, False, "no such input"))
        return Measured(replace(self._foreign, offers=tuple(self._offers)), logits, bounded)

    def _prompt(self) -> dict[str, Array]:
        """A first call; an empty past has no rows, or one that a branch without cache ignores."""
        graph = self._foreign.graphs[PREFILL]
        takes_past = any(name.startswith("past_key_values.") for name in graph.inputs)
        for rows in (0, 1) if takes_past else (0,):
            self._set(PREFILL, replace(graph, empty_rows=rows))
            if graph.run == DECODE:
                self._set(DECODE, replace(self._foreign.graphs[DECODE], empty_rows=rows))
            try:
                outputs = self._call(PREFILL, _TOKENS)
            except KvparityError as error:
                reason = str(error)
                continue
            if takes_past:
                found = "no rows" if rows == 0 else "a row of zeros, which its branch without cache ignores"
                self._offers.append(Offer("an empty past", True, found))
            return outputs
        raise BundleError(f"a prompt of {_TOKENS} tokens does not run: {reason}")

    def _logits(self, outputs: Mapping[str, Array]) -> str:
        shape = outputs[self._foreign.graphs[PREFILL].outputs["logits"]].shape
        if len(shape) == 3 and shape[0] == 1 and shape[2] == self._model.vocab_size and shape[1] in (1, _TOKENS):
            self._offers.append(Offer("logits", True, "every position" if shape[1] > 1 else "the last position"))
            return "all" if shape[1] == _TOKENS else "last"
        raise BundleError(
            f"logits of {_TOKENS} tokens are {list(shape)}, expected [1, 7 or 1, {self._model.vocab_size}]"
        )

    def _cache_axes(self, outputs: Mapping[str, Array]) -> None:
        """(batch, kv_heads, rows, head_dim), or rows before heads."""
        graph = self._foreign.graphs[PREFILL]
        names = [own for name, own in graph.outputs.items() if name.startswith("present.") and own in outputs]
        if not names:
            self._offers.append(Offer(CACHES, False, "the graph returns none"))
            return
        shape = outputs[names[0]].shape
        slot = self._model.slots[0]
        wanted = (1, slot.kv_heads, _TOKENS, slot.head_dim)
        rows_first = shape != wanted and shape == (1, _TOKENS, slot.kv_heads, slot.head_dim)
        known = shape == wanted or rows_first
        axes = "(batch, rows, kv_heads, head_dim)" if rows_first else "(batch, kv_heads, rows, head_dim)"
        found = axes if known else f"{list(shape)} after {_TOKENS} tokens, which is no key cache of this model"
        self._offers.append(Offer(CACHES, known, found))
        for kind, item in self._foreign.graphs.items():
            self._set(kind, replace(item, rows_first=rows_first))

    def _sliding_rows(self) -> bool:
        """Whether sliding caches drop rows; they may keep window - 1 or a few more."""
        slot = next((slot for slot in self._model.slots if slot.window is not None), None)
        if slot is None or slot.window is None:
            return True
        total = slot.window + 5
        try:
            outputs = self._call(PREFILL, total)
        except KvparityError as error:
            self._offers.append(Offer("a prompt past the window", False, str(error)))
            return True
        graph = self._foreign.graphs[PREFILL]
        own = graph.outputs.get(f"present.{slot.slot}.key")
        rows = outputs[own].shape[1 if graph.rows_first else 2] if own is not None and own in outputs else total
        extra = rows - (slot.window - 1)
        bounded = rows < total
        self._foreign = replace(self._foreign, extra_rows=extra if bounded else 0)
        known = not bounded or extra >= 0
        found = f"{rows} rows after {total} tokens; the window is {slot.window}"
        self._offers.append(Offer("rows of sliding caches", known, found))
        return bounded

    def _after_a_past(self, outputs: Mapping[str, Array]) -> None:
        pasts = self._pasts(outputs)
        if not pasts:
            self._offers.append(Offer(CHUNKS, False, "its caches cannot be handed on"))
            return
        self._offer("one token after a past", lambda: self._call(DECODE, 1, pasts=pasts), "runs")
        self._offer(CHUNKS, lambda: self._call(DECODE, 3, pasts=pasts), "3 tokens")

    def _pasts(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        given, taken = self._foreign.graphs[PREFILL].outputs, self._foreign.graphs[DECODE].inputs
        found: dict[str, Array] = {}
        for slot, part in self._model.cache_names():
            name = past_name(slot.slot, part)
            own = given.get(f"present.{slot.slot}.{part}")
            if name in taken and own is not None and own in outputs:
                array = outputs[own]
                found[name] = array.swapaxes(1, 2) if self._foreign.graphs[PREFILL].rows_first else array
        return found if len(found) == sum(name.startswith("past_key_values.") for name in taken) else {}

    def _offer(self, name: str, trial: Callable[[], object], found: str) -> None:
        try:
            trial()
        except KvparityError as error:
            self._offers.append(Offer(name, False, str(error)))
        else:
            self._offers.append(Offer(name, True, found))

    def _call(
        self, kind: GraphKind, tokens: int, *, batch: int = 1, pads: int = 0, pasts: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        start = _TOKENS if pasts else 0
        ids = 3 + np.arange(batch * tokens, dtype=np.int64).reshape(batch, tokens) % (self._model.vocab_size - 3)
        inputs: dict[str, Array] = {
            "input_ids": ids,
            "attention_mask": np.tile(np.arange(start + tokens) >= pads, (batch, 1)).astype(np.int64),
            "position_ids": np.tile(np.arange(start, start + tokens).clip(pads) - pads, (batch, 1)).astype(np.int64),
            **(pasts or {}),
        }
        graph: ForeignGraph = self._foreign.graphs[kind]
        feeds = foreign_feeds(graph, self._ports[graph.run], inputs, self._model)
        return filled_rows(graph, self._run(graph.run, feeds), start + tokens)

    def _set(self, kind: GraphKind, graph: ForeignGraph) -> None:
        self._foreign = replace(self._foreign, graphs={**self._foreign.graphs, kind: graph})
