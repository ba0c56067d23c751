"""What a model, a graph and an export are: frozen dataclasses, standard library only.

Axes used in every shape of this project: ``batch``, ``sequence`` (tokens of this call), ``past`` (rows before this
call), ``rows`` (rows of one cache slot), ``heads``, ``kv_heads``, ``head_dim``, ``hidden``, ``vocab``.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal, TypeVar

__all__ = [
    "DECODE",
    "FLOAT64_CONSTANTS",
    "FLOAT64_EPSILON",
    "PREFILL",
    "ExportOptions",
    "GraphSpec",
    "HostInput",
    "LayerSpec",
    "ModelSpec",
    "Port",
    "RopeSpec",
    "SlotSpec",
    "StateSpec",
    "blocked_score",
    "mask_name",
    "part_dtype",
    "past_name",
    "present_name",
]

_Size = TypeVar("_Size", int, int | str)
LayerKind = Literal["full", "sliding", "chunked", "conv", "recurrent", "none"]
Part = Literal["key", "value", "conv_state", "recurrent_state", "ssm_state"]
StatePart = Literal["conv_state", "recurrent_state", "ssm_state"]
GraphKind = Literal["prefill", "decode"]
FLOAT64_CONSTANTS = "kvparity.float64_constants"  # a graph's metadata: {initializer: [its float64 values in hex]}
FLOAT64_EPSILON = "kvparity.float64_epsilon"  # the same: {a norm's float32 epsilon: its float64 value}, both in hex
_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
PREFILL: GraphKind = "prefill"
DECODE: GraphKind = "decode"


def blocked_score(dtype: str) -> float:
    """What a mask adds where a query may not look: far below any score, and finite in the dtype of that name."""
    return -65504.0 if dtype == "float16" else -1e9


def past_name(slot: int, part: str) -> str:
    """Name of a cache input, as ONNX Runtime GenAI, Optimum and transformers.js spell it."""
    return f"past_key_values.{slot}.{part}"


def part_dtype(part: str, dtype: str) -> str:
    """Dtype of a part of a cache slot in a bundle of ``dtype``: what a recurrence sums up is float32 in all of them."""
    return "float32" if part in ("recurrent_state", "ssm_state") else dtype


def mask_name(window: int | None) -> str:
    """Name of a mask input of the ``bare`` profile."""
    return "mask.full" if window is None else f"mask.sliding_{window}"


def present_name(slot: int, part: str) -> str:
    """Name of a cache output, as ONNX Runtime GenAI, Optimum and transformers.js spell it."""
    return f"present.{slot}.{part}"


@dataclass(frozen=True)
class LayerSpec:
    """One decoder layer.

    Attributes:
        index: Position in the stack, from 0.
        kind: Whether the layer attends to everything (``full``), to a ``sliding`` window, or to what its own chunk of
            the text holds so far (``chunked``), or has no attention: a short convolution (``conv``), a recurrence
            (``recurrent``), or neither (``none``).
        window: Keys that a query sees at most, itself included: of a chunked layer the chunk; None for all others.
        slot: Cache slot that the layer reads; None where it reads none.
        owns_slot: False where the layer shares the keys and values of an earlier layer.
    """

    index: int
    kind: LayerKind
    window: int | None
    slot: int | None
    owns_slot: bool = True

    @property
    def attends(self) -> bool:
        """Whether the layer has attention."""
        return self.kind in ("full", "sliding", "chunked")


@dataclass(frozen=True)
class StateSpec:
    """A part of a cache slot whose size does not grow with the text; zeros before the first token.

    Attributes:
        part: ``conv_state``: the newest inputs of a causal convolution, without the one that its next output does not
            see; ``recurrent_state``: what linear attention or a delta rule sums up; ``ssm_state``: a state-space
            model's state.
        shape: Axes after the batch: (channels, kernel - 1); (heads, key_dim, value_dim), for Mamba-2 the key is B and
            the value x; (channels, state) for Mamba-1; (channels,) for RG-LRU.
        chunk: Tokens that transformers computes a recurrence in at a time, where cases have an edge; 0 for none.
    """

    part: StatePart
    shape: tuple[int, ...]
    chunk: int = 0


@dataclass(frozen=True)
class SlotSpec:
    """One cache slot: keys and values, states, or both, that one layer writes and one or more layers read.

    Attributes:
        slot: Number in the tensor names ``past_key_values.<slot>.key``.
        layer: The layer that writes it.
        kind: Kind of that layer.
        window: Window of that layer; a bounded cache keeps at most ``window - 1`` rows.
        kv_heads: Key-value heads; 0 where the slot has states only.
        head_dim: Size of a key head.
        value_head_dim: Size of a value head.
        shared_by: Later layers that read this slot without writing it.
        states: Parts beside or instead of keys and values.
    """

    slot: int
    layer: int
    kind: LayerKind
    window: int | None
    kv_heads: int
    head_dim: int
    value_head_dim: int
    shared_by: tuple[int, ...] = ()
    states: tuple[StateSpec, ...] = ()

    @property
    def parts(self) -> tuple[Part, ...]:
        """Names of its tensors in port order."""
        rows: tuple[Part, ...] = ("key", "value") if self.kv_heads else ()
        return (*rows, *(state.part for state in self.states))

    def shape(self, part: str, batch: _Size, rows: _Size) -> tuple[_Size, ...]:
        """Shape of a part: (batch, kv_heads, rows, head_dim), or the batch and a state's axes."""
        if part in ("key", "value"):
            return (batch, self.kv_heads, rows, self.dim(part))
        return (batch, *next(state.shape for state in self.states if state.part == part))

    def dim(self, part: str) -> int:
        """Head size of ``"key"`` or ``"value"``."""
        return self.head_dim if part == "key" else self.value_head_dim

    def row_bytes(self, dtype: str) -> int:
        """Bytes of one row of keys and values in a bundle of ``dtype``."""
        return self.kv_heads * (self.head_dim + self.value_head_dim) * _BYTES[dtype]

    def state_bytes(self, dtype: str) -> int:
        """Bytes of all states of one batch row."""
        return sum(prod(state.shape) * _BYTES[part_dtype(state.part, dtype)] for state in self.states)

    def kept_rows(self, total: int) -> int:
        """Rows that the next token may see once ``total`` tokens were seen."""
        return total if self.window is None else min(total, self.window - 1)


@dataclass(frozen=True)
class RopeSpec:
    """A rotary table: cos and sin of position times frequency.

    Attributes:
        name: Layer type that it belongs to; empty where all layers share one table.
        inv_freq: Frequency of each rotated pair.
        scaling: Factor on cos and sin.
        arrangement: How the n angles are laid over a table's columns: ``halves`` a0..an a0..an, ``pairs`` a0 a0 a1 a1
            …, ``once`` a0..an.
    """

    name: str
    inv_freq: tuple[float, ...]
    scaling: float
    arrangement: Literal["halves", "pairs", "once"]

    @property
    def columns(self) -> int:
        """Columns of a table."""
        return len(self.inv_freq) * (1 if self.arrangement == "once" else 2)

    @staticmethod
    def port_of(name: str, part: str) -> str:
        """Port name of a table; ``part`` is ``cos`` or ``sin``."""
        return f"rope.{name}.{part}" if name else f"rope.{part}"


@dataclass(frozen=True)
class HostInput:
    """An input that the host computes (profile ``bare``); everything that a host in any language needs.

    Attributes:
        name: The port.
        kind: What it is.
        formula: How to compute it, in words.
        window: Of a sliding mask.
        blocked: What a mask holds where a query may not look; it holds 0 elsewhere.
        rope: The table's numbers.
    """

    name: str
    kind: Literal["mask", "cos", "sin"]
    formula: str
    window: int | None = None
    blocked: float = 0.0
    rope: RopeSpec | None = None


@dataclass(frozen=True)
class ModelSpec:
    """What the exporter, the runners and the referee need to know of a model; read from its config.

    ``position_by_slot`` says that the model counts positions by cache slot, padding included: left-padded rows are then
    not what their tokens alone give, in transformers either, in cases of more than ``position_by_slot_from`` slots.
    ``rope_switch`` is the longest call, in positions, that
    keeps the original rotary frequencies, of a model that changes them beyond (rope types longrope and dynamic): every
    token of a longer call has others, so that results depend on how the tokens are cut into calls and on the longest
    row of a batch, in transformers too. ``single_steps`` says that transformers computes several tokens that follow
    others as if nothing came before them, so that it has a right answer there for single tokens only; graphs go on from
    the state. ``rope_restart`` says that text is generated without such a cut: transformers'
    ``generate()`` drops the cache where the text passes the switch, and prefills anew.
    """

    model_type: str
    architecture: str
    vocab_size: int
    hidden_size: int
    heads: int
    layers: tuple[LayerSpec, ...]
    slots: tuple[SlotSpec, ...]
    max_position: int
    parameters: int
    dtype: str
    tied_embeddings: bool
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    features: tuple[str, ...] = ()
    not_exercised: tuple[str, ...] = ()
    ropes: tuple[RopeSpec, ...] = ()
    position_by_slot: bool = False
    position_by_slot_from: int = 0
    rope_switch: int | None = None
    rope_restart: bool = False
    single_steps: bool = False

    @property
    def windows(self) -> frozenset[int]:
        """Sliding windows that a conversation of the model can pass: one as long as its positions is none."""
        found = {layer.window for layer in self.layers if layer.window is not None}
        return frozenset(window for window in found if window < self.max_position)

    @property
    def window(self) -> int | None:
        """The smallest sliding window of any layer, or None where every layer is full."""
        windows = [layer.window for layer in self.layers if layer.window is not None]
        return min(windows) if windows else None

    @property
    def pattern(self) -> str:
        """Layer kinds in order, as in ``ssFssF``.

        ``s`` sliding, ``C`` chunked, ``F`` full, ``c`` convolution, ``r`` recurrence, ``H`` attention beside a state,
        ``-`` no cache.
        """
        both = {slot.layer for slot in self.slots if slot.kv_heads and slot.states}
        letters = {"sliding": "s", "chunked": "C", "full": "F", "conv": "c", "recurrent": "r", "none": "-"}
        return "".join("H" if layer.index in both else letters[layer.kind] for layer in self.layers)

    def slot_of(self, layer: LayerSpec) -> SlotSpec:
        """The cache slot that a layer reads; for layers with attention, which have one."""
        assert layer.slot is not None
        return self.slots[layer.slot]

    @property
    def has_states(self) -> bool:
        """Whether any slot has a part beside keys and values."""
        return any(slot.states for slot in self.slots)

    @property
    def recurrent(self) -> bool:
        """Whether any slot has the state of a recurrence, which every call rewrites."""
        return any(part in ("recurrent_state", "ssm_state") for _, part in self.cache_names())

    def cache_names(self) -> tuple[tuple[SlotSpec, Part], ...]:
        """Every (slot, part) pair in port order."""
        return tuple((slot, part) for slot in self.slots for part in slot.parts)


@dataclass(frozen=True)
class Port:
    """One input or output of a graph; a dimension is a number or a symbolic name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphSpec:
    """The ports of one graph, in order."""

    kind: GraphKind
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    @property
    def recurrent(self) -> bool:
        """Whether it hands out the state of a recurrence."""
        return any(port.name.endswith(("recurrent_state", "ssm_state")) for port in self.outputs)

    def input(self, name: str) -> Port | None:
        """The input of that name, if there is one."""
        return next((port for port in self.inputs if port.name == name), None)


@dataclass(frozen=True)
class ExportOptions:
    """How a bundle is made; recorded in its manifest.

    Attributes:
        layout: Caches that grow (``dynamic``), fixed buffers with a write index (``static``), or buffers that are
            written in place (``shared``).
        profile: Which operators the graphs may use.
        sliding_cache: ``bounded`` keeps window - 1 rows in sliding layers, ``full`` keeps them all.
        rewind: Rows that bounded sliding caches keep beyond that, so that a host may drop as many of the newest tokens.
        dtype: Of weights and caches; logits are always float32.
        opset: Default-domain opset; the profile's where not given.
        logits: Of every position, or only of the last of each call.
        max_len: Static layout: buffer rows; the model's positions, at most 1024, where not given.
        chunk: Static layout: tokens per prefill call; 64 where not given.
        batch: Static layout: batch rows; 1 where not given.
        provider: Execution provider that profile ``ort`` picks operators for.
        quantize: Weights of linear layers, experts and embeddings in blocks of ``int4`` or ``int8``, a GGUF file's own
            where they fit; ``gguf`` keeps every weight as a GGUF file has it; ``int8-dynamic`` has one scale per row,
            rounds activations too, and multiplies integers.
        block_size: Columns that share a scale; those of a GGUF file's own weights are the file's.
        keep: Kinds of layers that stay as they are, such as ``embed``.
        int8: With ``int4``, kinds of layers in eight bits; ``vocabulary`` is the token embedding and the head.
        quantizer: How weights are rounded; both are ONNX Runtime's.
        accuracy_level: 0 multiplies activations as they are; 4 rounds them to int8, block by block, in the reference
            too: faster, as llama.cpp does it.
    """

    layout: Literal["dynamic", "static", "shared"] = "dynamic"
    profile: Literal["bare", "portable", "modern", "ort"] = "portable"
    sliding_cache: Literal["bounded", "full"] = "bounded"
    rewind: int = 0
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    opset: int | None = None
    logits: Literal["all", "last"] = "all"
    max_len: int | None = None
    chunk: int | None = None
    batch: int | None = None
    provider: Literal["cpu", "cuda", "webgpu"] = "cpu"
    quantize: Literal["none", "int4", "int8", "gguf", "int8-dynamic"] = "none"
    block_size: int = 32
    keep: tuple[str, ...] = ()
    int8: tuple[str, ...] = ("vocabulary",)
    quantizer: Literal["rtn", "k_quant"] = "rtn"
    accuracy_level: Literal[0, 4] = 0

    @property
    def groups_queries(self) -> bool:
        """Whether attention is ONNX Runtime's GroupQueryAttention; CUDA has it for half precision only."""
        return self.profile == "ort" and self.provider != "cpu" and (self.provider, self.dtype) != ("cuda", "float32")

    @property
    def bounded(self) -> bool:
        """Whether sliding caches keep at most window - 1 rows."""
        return self.sliding_cache == "bounded"

    @property
    def coarse(self) -> bool:
        """Whether the bundle computes with fewer bits than float32."""
        return self.dtype != "float32" or self.rounds_activations

    @property
    def rounds_activations(self) -> bool:
        """Whether what linear layers are given is rounded to eight bits, in the reference too."""
        return self.quantize == "int8-dynamic" or self.accuracy_level == 4

    def held_rows(self, slot: SlotSpec, total: int) -> int:
        """Rows of memory that a slot takes once ``total`` tokens were seen."""
        return (self.ring(slot) or self.max_len or total) if self.layout != "dynamic" else self.kept_rows(slot, total)

    def kept_rows(self, slot: SlotSpec, total: int, peak: int = 0) -> int:
        """Rows that a slot holds once ``total`` tokens were seen.

        Args:
            slot: The slot.
            total: Tokens that were seen and not taken back.
            peak: The most that they ever were: a sliding slot dropped its oldest rows then.
        """
        if slot.window is None or not self.bounded:
            return total
        return max(total - max(max(total, peak) - (slot.window - 1 + self.rewind), 0), 0)

    def reaches(self, model: ModelSpec, start: int, peak: int) -> bool:
        """Whether caches that came to ``peak`` tokens still hold every row that a token at slot ``start`` sees."""
        if start < peak and model.has_states:
            return False
        return all(self.kept_rows(slot, start, peak) >= slot.kept_rows(start) for slot in model.slots if self.bounded)

    def ring(self, slot: SlotSpec) -> int | None:
        """Rows of the ring that the static or shared layout keeps a sliding slot in; None for a buffer of every row."""
        if self.layout == "dynamic" or not self.bounded or slot.window is None:
            return None
        rows = slot.window + self.rewind
        return rows if self.layout == "shared" or rows < (self.max_len or 0) else None

    def capacity(self, slot: SlotSpec) -> int:
        """Rows of a slot's buffer in the static layout."""
        assert self.max_len is not None
        return self.ring(slot) or self.max_len
