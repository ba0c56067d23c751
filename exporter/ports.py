"""The tensor contract: which inputs and outputs each graph of a layout has, in which order."""

from __future__ import annotations

from exporter.spec import (
    DECODE,
    ExportOptions,
    GraphKind,
    GraphSpec,
    ModelSpec,
    Port,
    SlotSpec,
    past_name,
    present_name,
)

__all__ = ["graph_spec"]


def graph_spec(kind: GraphKind, model: ModelSpec, options: ExportOptions) -> GraphSpec:
    """Ports of one graph in the dynamic layout; dimensions are numbers or the names below.

    ``batch``, ``sequence``, ``total`` (past + sequence), ``past`` and ``past_sliding`` (rows handed in),
    ``present`` and ``present_sliding`` (rows handed out).
    """
    decode = kind == DECODE
    inputs = [
        Port("input_ids", "int64", ("batch", "sequence")),
        Port("attention_mask", "int64", ("batch", "total" if decode else "sequence")),
        Port("position_ids", "int64", ("batch", "sequence")),
    ]
    if decode:
        inputs += [
            Port(past_name(s.slot, part), options.dtype, _shape(s, part, "past", options))
            for s, part in model.cache_names()
        ]
    outputs = [
        Port("logits", "float32", ("batch", 1 if options.logits == "last" else "sequence", model.vocab_size)),
        *(
            Port(present_name(s.slot, part), options.dtype, _shape(s, part, _rows(decode), options))
            for s, part in model.cache_names()
        ),
    ]
    return GraphSpec(kind, tuple(inputs), tuple(outputs))


def _rows(decode: bool) -> str:
    return "total" if decode else "sequence"


def _shape(slot: SlotSpec, part: str, rows: str, options: ExportOptions) -> tuple[int | str, ...]:
    if slot.window is not None and options.bounded:
        rows = "past_sliding" if rows == "past" else "present_sliding"
    return ("batch", slot.kv_heads, rows, slot.dim(part))
