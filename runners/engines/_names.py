"""Names that engines give to their own values, read as those of the contract: llama.cpp's, MLX's, PyTorch hooks'.

A table says which probe or output a name is. Shapes follow by it: ggml has no batch axis, and a call's own rows of keys
and values where the contract has the whole history.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.errors import TraceError
from kvparity.exporter.contract.spec import present_name
from kvparity.runners.base import Array

__all__ = ["TABLES", "Named"]

Values = Mapping[str, Array]
# A name of llama.cpp's, without its layer: what it may be, the first that the model has. N is the layer.
_LLAMA_CPP = {
    "inp_scaled": ("embed_tokens",),
    "inp_embd": ("embed_tokens",),
    "attn_norm": ("layers.N.input_layernorm",),
    "Qcur_normed": ("layers.N.self_attn.q_norm",),
    "Kcur_normed": ("layers.N.self_attn.k_norm",),
    "Vcur_normed": ("layers.N.self_attn.v_norm",),
    "kqv_out": ("layers.N.self_attn.context",),
    "attn_out": ("layers.N.self_attn.o_proj",),
    "attn_post_norm": ("layers.N.post_attention_layernorm",),
    "ffn_norm": ("layers.N.pre_feedforward_layernorm", "layers.N.post_attention_layernorm"),
    "ffn_gate": ("layers.N.mlp.gate_proj",),
    "ffn_up": ("layers.N.mlp.up_proj",),
    "ffn_out": ("layers.N.mlp.down_proj",),
    "ffn_post_norm": ("layers.N.post_feedforward_layernorm",),
    "l_out": ("layers.N",),
    "result_norm": ("norm",),
    "result_output": ("logits",),
}
# Named before and after rotation; the probe is by letter: what the projection gives, and what attention takes.
_ROTATED = {"Q": ("q_proj", "query"), "K": ("k_proj", "key"), "V": ("v_proj", "value")}
# llama.cpp's converter reorders the rows of these models' query and key weights: neighbours rotate, not halves.
_NEIGHBOURS = ("llama", "mistral", "ministral", "mixtral", "granite", "granitemoe", "smollm3", "arcee")
_MODULES = {  # modules whose output is that of another, and the names of models that follow Meta's code
    r"(layers\.\d+\.self_attn)": r"\1.o_proj",
    r"(layers\.\d+\.mlp)": r"\1.down_proj",
    r"(layers\.\d+)\.attention\.w([qkvo])": r"\1.self_attn.\2_proj",
    r"(layers\.\d+)\.attention_norm": r"\1.input_layernorm",
    r"(layers\.\d+)\.ffn_norm": r"\1.post_attention_layernorm",
    r"(layers\.\d+)\.feed_forward\.w1": r"\1.mlp.gate_proj",
    r"(layers\.\d+)\.feed_forward\.w2": r"\1.mlp.down_proj",
    r"(layers\.\d+)\.feed_forward\.w3": r"\1.mlp.up_proj",
    r"tok_embeddings": "embed_tokens",
    r"lm_head|output": "logits",
    r"cache\.(\d+)\.(key|value)s?": r"present.\1.\2",
}
_PREFIX = re.compile(r"^(?:(?:model|language_model|transformer|backbone)\.)+")
_GGML = re.compile(r"(?P<name>[A-Za-z_]+)(?:-(?P<layer>\d+))?(?:[.#](?P<time>\d+))?")


@dataclass(frozen=True, eq=False)
class Named:
    """A recording in an engine's own names.

    Attributes:
        table: ``llama.cpp``, ``mlx`` or ``hooks``.
        bundle: For layers, heads and how many rows are kept.
        recorded: All that the recording has of a call, by the engine's names.
    """

    table: str
    bundle: Bundle
    recorded: Callable[[int], Values]

    def __post_init__(self) -> None:
        if self.table not in TABLES:
            raise TraceError(f"--names {self.table}: no such table of names; known are {', '.join(TABLES)}")

    def outputs(self, step: int, total: int) -> dict[str, Array]:
        """The contract's outputs of a call.

        Args:
            step: The call, from 0.
            total: Positions up to its end; 0 where only types are asked for.
        """
        found = {name: array for name, array in self._targets(step) if name == "logits" or name.startswith("present.")}
        if "logits" in found and found["logits"].ndim < 3:
            found["logits"] = found["logits"].reshape(1, -1, found["logits"].shape[-1])
        for slot in self.bundle.model.slots:
            kept = self.bundle.options.kept_rows(slot, total)
            for part in ("key", "value"):
                name, own = present_name(slot.slot, part), f"layers.{slot.layer}.self_attn.{part}"
                history = None if name in found else self._history(step, own)
                if history is not None and total in (0, history.shape[2]):  # else a call went back in between
                    found[name] = history
                if name in found and found[name].ndim == 4 and found[name].shape[2] > kept:
                    found[name] = found[name][:, :, found[name].shape[2] - kept :]
        return found

    def inside(self, step: int, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
        """Values inside the model that the recording has of a call, by probe.

        Args:
            step: The call, from 0.
            shapes: Of every probe and output of the graph, by name; what has another size is left out.
        """
        found: dict[str, Array] = {}
        for name, array in self._targets(step, shapes):
            if name.endswith((".key", ".value")) and not name.startswith("present."):
                rows = self._history(step, name)
                array = array if rows is None else rows
            shape = shapes.get(name)
            if shape is not None and array.size == int(np.prod(shape)):
                found[name] = array.reshape(shape)
        if not found:
            some = ", ".join(list(self.recorded(step))[:4]) or "nothing"
            raise TraceError(f"step_{step}: holds no value that --names {self.table} has a probe for; found {some}")
        return found

    def _history(self, step: int, probe: str) -> Array | None:
        """(batch, heads, rows, head_dim): keys or values of this call and all before it; None where some lack."""
        calls = [dict(self._targets(index)).get(probe) for index in range(step + 1)]
        known = [array for array in calls if array is not None and array.ndim == 4]
        return np.concatenate(known, axis=2) if len(known) == len(calls) else None

    def _targets(self, step: int, known: Mapping[str, object] | None = None) -> Iterator[tuple[str, Array]]:
        """Every value that the table has a name for, by the contract's name."""
        values = self.recorded(step)
        if self.table == "llama.cpp":
            yield from self._ggml(values, known)
            return
        for name, array in values.items():
            plain = _PREFIX.sub("", name)
            other = next((re.sub(p, to, plain) for p, to in _MODULES.items() if re.fullmatch(p, plain)), plain)
            yield (plain if known is not None and plain in known else other), array

    def _ggml(self, values: Values, known: Mapping[str, object] | None) -> Iterator[tuple[str, Array]]:
        rotated: dict[tuple[str, str], list[tuple[int, Array]]] = {}
        gemma = self.bundle.model.model_type.startswith("gemma")
        for name, array in values.items():
            found = _GGML.fullmatch(name)
            if found is None or (gemma and found["name"] == "inp_embd"):  # that is before its scale
                continue
            kind, layer = found["name"], found["layer"] or ""
            if layer and int(layer) >= len(self.bundle.model.layers):
                raise TraceError(
                    f"{name!r}: the model has {len(self.bundle.model.layers)} layers; recorded of another?"
                )
            if layer and kind in ("Qcur", "Kcur", "Vcur"):
                rotated.setdefault((kind[0], layer), []).append((int(found["time"] or 0), array))
                continue
            several = [target.replace("N", layer) for target in _LLAMA_CPP.get(kind, ())]
            several = [target for target in several if known is None or target in known] or several
            yield from [(target, array) for target in several[:1]]
        for (letter, layer), times in rotated.items():
            arrays = [array for _, array in sorted(times, key=lambda item: item[0])]
            projected, taken = (f"layers.{layer}.self_attn.{last}" for last in _ROTATED[letter])
            if len(arrays) > 1:
                yield projected, self._halves(arrays[-2], letter, layer)
            heads = self._halves(arrays[-1], letter, layer)
            yield taken, np.moveaxis(heads, -3, -2)[None] if heads.ndim == 3 else heads

    def _halves(self, array: Array, letter: str, layer: str) -> Array:
        """(tokens, heads, head_dim), a head's elements in transformers' order; as it is where it does not fit."""
        model = self.bundle.model
        slot = next((slot for slot in model.slots if slot.slot == model.layers[int(layer)].slot), None)
        size = slot.dim("value" if letter == "V" else "key") if slot else 0
        heads = model.heads if letter == "Q" or slot is None else slot.kv_heads
        if not size or array.size % (heads * size):
            return array
        array = array.reshape(-1, heads, size)
        if letter == "V" or model.model_type not in _NEIGHBOURS:
            return array
        return array.reshape(-1, heads, size // 2, 2).swapaxes(-1, -2).reshape(array.shape)


TABLES = ("llama.cpp", "mlx", "hooks")
