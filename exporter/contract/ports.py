"""The tensor contract: which inputs and outputs each graph of a layout has, in which order."""

from __future__ import annotations

from dataclasses import replace

from kvparity.exporter.contract.errors import ExportError
from kvparity.exporter.contract.spec import (
    DECODE,
    ExportOptions,
    GraphKind,
    GraphSpec,
    HostInput,
    ModelSpec,
    Port,
    RopeSpec,
    SlotSpec,
    blocked_score,
    mask_name,
    part_dtype,
    past_name,
    present_name,
)

__all__ = ["graph_spec", "host_inputs", "resolve_options"]

_MASK = (
    "[b,0,i,j] = 0 where key slot k = total - rows + j is seen by query slot q = total - sequence + i, else `blocked`; "
    "seen: k <= q and attention_mask[b,k] = 1; total is the tokens so far, this call's included, "
    "rows the last axis: past rows and this call's"
)
_WINDOW = "; and q - k < window"
_ROPE = {
    "halves": "(position_ids[b,i] * inv_freq[c mod n]) * scaling",
    "pairs": "(position_ids[b,i] * inv_freq[c div 2]) * scaling",
    "once": "(position_ids[b,i] * inv_freq[c]) * scaling",
}
_ROPE = {
    key: f"{text} at [b,i,c], n frequencies; product, cos and sin in float32, then cast" for key, text in _ROPE.items()
}
_STATIC_ONLY = ("max_len", "chunk", "batch")


def resolve_options(options: ExportOptions, model: ModelSpec) -> ExportOptions:
    """Options with every default filled in for a model.

    Raises:
        ExportError: Options that contradict each other or the model.
    """
    _check_profile(options, model)
    _check_rewind(options, model)
    if options.layout != "static":
        if given := [name for name in _STATIC_ONLY if getattr(options, name) is not None]:
            raise ExportError(f"--{given[0].replace('_', '-')} belongs to --layout static, not {options.layout}")
        return options
    max_len = min(model.max_position, 1024) if options.max_len is None else options.max_len
    if not 2 <= max_len <= model.max_position:
        raise ExportError(f"--max-len {max_len}: expected 2 to the model's {model.max_position} positions")
    chunk = min(64, max_len) if options.chunk is None else options.chunk
    if not 1 <= chunk <= max_len:
        raise ExportError(f"--chunk {chunk}: expected 1 to --max-len {max_len}")
    batch = 1 if options.batch is None else options.batch
    if batch < 1:
        raise ExportError(f"--batch {batch}: expected at least 1")
    return replace(options, max_len=max_len, chunk=chunk, batch=batch)


def _check_profile(options: ExportOptions, model: ModelSpec) -> None:
    if options.profile == "ort" and options.layout == "static":
        raise ExportError("--profile ort has the layouts dynamic and shared, not static; use --profile modern")
    if options.provider != "cpu" and (options.profile, options.layout) != ("ort", "dynamic"):
        raise ExportError(
            f"--provider {options.provider} chooses among ONNX Runtime's operators: it needs --profile ort and the "
            "dynamic layout"
        )
    if options.layout == "shared" and options.profile != "ort":
        raise ExportError(f"--layout shared is for ONNX Runtime: it needs --profile ort, not {options.profile}")
    if options.profile == "bare" and options.layout != "dynamic":
        raise ExportError(f"--profile bare has the dynamic layout only, not {options.layout}")
    oldest = 23 if options.layout == "dynamic" else 24
    if options.profile in ("modern", "ort") and options.opset is not None and options.opset < oldest:
        raise ExportError(f"--profile {options.profile} needs --opset {oldest} or later in the {options.layout} layout")
    if model.has_states and (options.layout == "shared" or options.profile == "bare"):
        states = sorted({state.part for slot in model.slots for state in slot.states})
        raise ExportError(
            f"{model.model_type} keeps {' and '.join(states)}: its graphs have the layouts dynamic and static, in the "
            "profiles portable, modern and ort"
        )
    if options.profile == "bare" and model.rope_switch is not None:
        raise ExportError(
            f"--profile bare: {model.model_type} changes its rotary frequencies in calls beyond {model.rope_switch:,} "
            "positions (rope type longrope or dynamic), so one table is not enough; use --profile portable"
        )
    if options.profile == "bare" and any(layer.kind == "chunked" for layer in model.layers):
        raise ExportError(
            f"--profile bare: {model.model_type} has chunked attention, whose masks are not among the host's inputs; "
            "use --profile portable"
        )
    if options.profile == "bare" and not model.ropes:
        raise ExportError(
            f"--profile bare: the rotary embedding of {model.model_type} is not a table of cos and sin of position "
            "times frequency, so a host can't compute it; use --profile portable"
        )


def _check_rewind(options: ExportOptions, model: ModelSpec) -> None:
    if not 0 <= options.rewind < model.max_position:
        raise ExportError(f"--rewind {options.rewind}: expected 0 to {model.max_position - 1} tokens")
    if options.rewind and model.has_states:
        raise ExportError(
            f"--rewind {options.rewind}: {model.model_type} keeps states, which hold no token by itself that could be "
            "dropped; keep the states of before the call, and replay the accepted tokens"
        )


def host_inputs(model: ModelSpec, options: ExportOptions) -> tuple[HostInput, ...]:
    """Inputs that the host computes, in port order; none unless the profile is ``bare``."""
    if options.profile != "bare":
        return ()
    blocked = blocked_score(options.dtype)
    found = [
        HostInput(mask_name(window), "mask", _MASK + ("" if window is None else _WINDOW), window, blocked)
        for window in dict.fromkeys(layer.window for layer in model.layers if layer.attends)
    ]
    for rope in model.ropes:
        for part in ("cos", "sin"):
            formula = f"{part}{_ROPE[rope.arrangement]}"
            found.append(HostInput(RopeSpec.port_of(rope.name, part), part, formula, rope=rope))
    return tuple(found)


def _host_port(item: HostInput, decode: bool, options: ExportOptions) -> Port:
    """``rows`` are those that a layer sees: past and new ones."""
    if item.rope is not None:
        return Port(item.name, options.dtype, ("batch", "sequence", item.rope.columns))
    rows = "total" if decode else "sequence"
    if decode and item.window is not None and options.bounded:
        rows = "rows_sliding"
    return Port(item.name, options.dtype, ("batch", 1, "sequence", rows))


def graph_spec(kind: GraphKind, model: ModelSpec, options: ExportOptions) -> GraphSpec:
    """Ports of one graph: names, dtypes and shapes in order.

    Args:
        kind: Which graph.
        model: The model.
        options: As :func:`resolve_options` gives them.
    """
    makers = {"static": _static, "shared": _shared, "dynamic": _dynamic}
    return makers[options.layout](kind, model, options)


def _static(kind: GraphKind, model: ModelSpec, options: ExportOptions) -> GraphSpec:
    """Numbers only; both graphs take and return whole buffers, prefill ``chunk`` tokens per call and decode one."""
    assert options.batch is not None
    assert options.chunk is not None
    assert options.max_len is not None
    batch, tokens = options.batch, 1 if kind == DECODE else options.chunk

    def buffer(slot: SlotSpec, part: str) -> tuple[int | str, ...]:
        return slot.shape(part, batch, options.capacity(slot))

    names = model.cache_names()
    inputs = [
        Port("input_ids", "int64", (batch, tokens)),
        Port("attention_mask", "int64", (batch, options.max_len)),
        Port("position_ids", "int64", (batch, tokens)),
        Port("cache_position", "int64", (tokens,)),
        *(Port(past_name(s.slot, part), part_dtype(part, options.dtype), buffer(s, part)) for s, part in names),
    ]
    outputs = [
        Port("logits", "float32", (batch, 1 if options.logits == "last" else tokens, model.vocab_size)),
        *(Port(present_name(s.slot, part), part_dtype(part, options.dtype), buffer(s, part)) for s, part in names),
    ]
    return GraphSpec(kind, tuple(inputs), tuple(outputs))


def _shared(kind: GraphKind, model: ModelSpec, options: ExportOptions) -> GraphSpec:
    """Both graphs take whole buffers and return them written; decode takes one token, prefill any number.

    ``capacity`` is the host's choice: at least the tokens so far, and at least every ring.
    """
    tokens: int | str = 1 if kind == DECODE else "sequence"

    def buffer(slot: SlotSpec, part: str) -> tuple[int | str, ...]:
        return slot.shape(part, "batch", options.ring(slot) or "capacity")

    names = model.cache_names()
    inputs = [
        Port("input_ids", "int64", ("batch", tokens)),
        Port("attention_mask", "int64", ("batch", "capacity")),
        Port("position_ids", "int64", ("batch", tokens)),
        Port("past_lengths", "int64", ("batch",)),
        *(Port(past_name(s.slot, part), part_dtype(part, options.dtype), buffer(s, part)) for s, part in names),
    ]
    outputs = [
        Port("logits", "float32", ("batch", 1 if options.logits == "last" else tokens, model.vocab_size)),
        *(Port(present_name(s.slot, part), part_dtype(part, options.dtype), buffer(s, part)) for s, part in names),
    ]
    return GraphSpec(kind, tuple(inputs), tuple(outputs))


def _dynamic(kind: GraphKind, model: ModelSpec, options: ExportOptions) -> GraphSpec:
    """Ports of one graph in the dynamic layout; dimensions are numbers or the names below.

    ``batch``, ``sequence``, ``total`` (past + sequence), ``past`` and ``past_sliding`` (rows handed in),
    ``present`` and ``present_sliding`` (rows handed out), ``rows_sliding`` (past_sliding + sequence).
    """
    decode = kind == DECODE
    inputs = [Port("input_ids", "int64", ("batch", "sequence"))]
    if host := host_inputs(model, options):
        inputs += [_host_port(item, decode, options) for item in host]
    else:
        inputs.append(Port("attention_mask", "int64", ("batch", "total" if decode else "sequence")))
        inputs.append(Port("position_ids", "int64", ("batch", "sequence")))
    if decode:
        inputs += [
            Port(past_name(s.slot, part), part_dtype(part, options.dtype), _shape(s, part, "past", options))
            for s, part in model.cache_names()
        ]
    outputs = [
        Port("logits", "float32", ("batch", 1 if options.logits == "last" else "sequence", model.vocab_size)),
        *(
            Port(present_name(s.slot, part), part_dtype(part, options.dtype), _shape(s, part, _rows(decode), options))
            for s, part in model.cache_names()
        ),
    ]
    return GraphSpec(kind, tuple(inputs), tuple(outputs))


def _rows(decode: bool) -> str:
    return "total" if decode else "sequence"


def _shape(slot: SlotSpec, part: str, rows: str, options: ExportOptions) -> tuple[int | str, ...]:
    if slot.window is not None and options.bounded:
        rows = "past_sliding" if rows == "past" else "present_sliding"
    return slot.shape(part, "batch", rows)
