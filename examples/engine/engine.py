"""A Gemma 4 text engine in 150 lines of numpy that reads a bundle, and records what it computes for the referee.

Nothing of kvparity, ONNX or PyTorch: ``config.json``, ``model.safetensors`` and ``cases/*.npz`` are all it needs. It
stands for the engine that you are writing; ``--fault`` puts in a mistake of the kind that such engines start with.

    python engine.py BUNDLE -o mine.npz --case handoff-129 --fault window
    python cli.py compare BUNDLE --trace mine.npz --case handoff-129 --locate
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

Array = np.ndarray[Any, Any]
FAULTS = {
    "window": "queries of sliding layers see one row too many",
    "base": "full layers rotate with the base of sliding ones",
    "pairs": "rotary embedding turns neighbours, not the two halves",
    "scale": "scores are divided by the square root of the head size",
    "norm": "norm weights are taken as 1 + w, as in Gemma 3",
    "values": "values are not normalised",
    "gelu": "GELU with erf, where the model has tanh",
    "embedding": "embeddings are not scaled",
    "token": "per-layer inputs lack the token's own part",
    "scalar": "layer scalars are left out",
    "cache": "sliding caches keep one row too few",
}


class Engine:
    """One conversation in float32; call it with tokens, and it keeps its caches.

    Args:
        bundle: Folder of a bundle whose model has neither shared caches, experts nor softcaps.
        fault: One of ``FAULTS``, or empty.
    """

    def __init__(self, bundle: Path, fault: str = "") -> None:
        self.config: dict[str, Any] = json.loads((bundle / "config.json").read_text(encoding="utf-8"))
        unknown = [
            key for key in ("num_kv_shared_layers", "enable_moe_block", "final_logit_softcapping") if self.config[key]
        ]
        if unknown or self.config["model_type"] != "gemma4_text":
            raise SystemExit(f"{bundle}: this engine knows gemma4_text without {', '.join(unknown) or 'other types'}")
        self.weights = load_file(bundle / "model.safetensors")
        self.fault = fault
        self.caches: list[tuple[Array, Array]] = []
        self.inside: dict[str, Array] = {}

    def __call__(self, ids: Array, mask: Array, positions: Array) -> dict[str, Array]:
        """Process (batch, tokens) ids.

        Args:
            ids: Token ids.
            mask: (batch, history and tokens), 1 = live.
            positions: (batch, tokens) rotary positions.

        Returns:
            ``logits`` and ``present.N.key/value`` of the bundle's contract; ``inside`` holds the values between.
        """
        config, self.inside = self.config, {}
        past = self.caches[0][0].shape[2] if self.caches else 0
        if mask.shape != (len(ids), past + ids.shape[1]):  # a past that lacks rows, or a mask that lacks columns
            raise SystemExit(
                f"attention_mask is {mask.shape}, and there are {past} cached and {ids.shape[1]} new tokens"
            )
        hidden = self.weights["model.embed_tokens.weight"][ids]
        if self.fault != "embedding":
            hidden = hidden * np.float32(config["hidden_size"] ** 0.5)
        self.keep("embed_tokens", hidden)
        extra = self.per_layer_inputs(ids, hidden)
        outputs: dict[str, Array] = {}
        for index in range(config["num_hidden_layers"]):
            hidden, key, value = self.layer(index, hidden, extra[:, :, index], mask, positions)
            rows = self.kept_rows(index, key.shape[2])
            outputs |= {f"present.{index}.key": key[:, :, -rows:], f"present.{index}.value": value[:, :, -rows:]}
        hidden = self.norm("norm", hidden, "model.norm.weight")
        return {"logits": hidden @ self.weights["model.embed_tokens.weight"].T, **outputs}

    def per_layer_inputs(self, ids: Array, hidden: Array) -> Array:
        """(batch, tokens, layers, channels): a small embedding of the token for every layer."""
        config, size = self.config, self.config["hidden_size_per_layer_input"]
        token = self.weights["model.embed_tokens_per_layer.weight"][ids] * np.float32(size**0.5)
        self.keep("embed_tokens_per_layer", token)
        shape = (*ids.shape, config["num_hidden_layers"], size)
        weight = self.weights["model.per_layer_model_projection.weight"]
        projected = self.keep("per_layer_model_projection", hidden @ weight.T) * np.float32(
            config["hidden_size"] ** -0.5
        )
        name = "per_layer_projection_norm"
        context = self.norm(name, projected.reshape(shape), f"model.{name}.weight")
        return (context + (0 if self.fault == "token" else token.reshape(shape))) * np.float32(0.5**0.5)

    def layer(
        self, index: int, hidden: Array, extra: Array, mask: Array, positions: Array
    ) -> tuple[Array, Array, Array]:
        """One decoder layer: hidden states, and keys and values of the whole history."""
        here = f"layers.{index}"
        self.keep(f"{here}.per_layer_input", extra)
        normed = self.norm(f"{here}.input_layernorm", hidden)
        attended, key, value = self.attention(index, normed, mask, positions)
        hidden = hidden + self.norm(f"{here}.post_attention_layernorm", attended)
        normed = self.norm(f"{here}.pre_feedforward_layernorm", hidden)
        product = self.gelu(self.linear(f"{here}.mlp.gate_proj", normed)) * self.linear(f"{here}.mlp.up_proj", normed)
        hidden = hidden + self.norm(f"{here}.post_feedforward_layernorm", self.linear(f"{here}.mlp.down_proj", product))
        gate = self.gelu(self.linear(f"{here}.per_layer_input_gate", hidden)) * extra
        gated = self.linear(f"{here}.per_layer_projection", gate)
        hidden = hidden + self.norm(f"{here}.post_per_layer_input_norm", gated)
        if self.fault != "scalar":
            hidden = hidden * self.weights[f"model.{here}.layer_scalar"]
        return self.keep(here, hidden), key, value

    def attention(self, index: int, hidden: Array, mask: Array, positions: Array) -> tuple[Array, Array, Array]:
        """Grouped-query attention over this call's rows and those before."""
        here, size = f"layers.{index}.self_attn", self.config["head_dim"]
        shape = (*hidden.shape[:2], -1, size)
        query = self.norm(f"{here}.q_norm", self.linear(f"{here}.q_proj", hidden).reshape(shape))
        key = self.norm(f"{here}.k_norm", self.linear(f"{here}.k_proj", hidden).reshape(shape))
        value = self.linear(f"{here}.v_proj", hidden).reshape(shape)
        if self.fault != "values":
            value = self.norm(f"{here}.v_norm", value, "")
        query, key = (self.rotate(index, array, positions).swapaxes(1, 2) for array in (query, key))
        value = value.swapaxes(1, 2)
        if index < len(self.caches):
            key, value = (np.concatenate(pair, axis=2) for pair in zip(self.caches[index], (key, value), strict=True))
            self.caches[index] = key, value
        else:
            self.caches.append((key, value))
        for name, array in (("query", query), ("key", key), ("value", value)):
            self.keep(f"{here}.{name}", array)
        scores = np.matmul(query, key.swapaxes(2, 3))
        if self.fault == "scale":
            scores = scores * np.float32(size**-0.5)
        scores = np.where(self.visible(index, mask, query.shape[2]), scores, np.float32(-1e9))
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        context = self.keep(f"{here}.context", np.matmul(weights, value).swapaxes(1, 2))
        return self.linear(f"{here}.o_proj", context.reshape(*hidden.shape[:2], -1)), key, value

    def visible(self, index: int, mask: Array, tokens: int) -> Array:
        """(batch, 1, tokens, rows) bool: causal, live, and in sliding layers at most a window back."""
        rows = mask.shape[1]
        distance = np.arange(rows - tokens, rows)[:, None] - np.arange(rows)[None, :]
        seen = distance >= 0
        if self.sliding(index):
            seen &= distance < self.config["sliding_window"] + (self.fault == "window")
        return (seen & (mask[:, None, :] == 1))[:, None]

    def rotate(self, index: int, array: Array, positions: Array) -> Array:
        """Rotary embedding of (batch, tokens, heads, head_dim): element i turns with element i + head_dim / 2."""
        kind, half = self.config["layer_types"][index], array.shape[3] // 2
        kind = "sliding_attention" if self.fault == "base" else kind
        rope = self.config["rope_parameters"][kind]
        turned = round(half * rope.get("partial_rotary_factor", 1.0))
        frequencies = np.zeros(half)
        frequencies[:turned] = rope["rope_theta"] ** (-np.arange(turned) / half)
        angles = positions[:, :, None, None] * frequencies
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        pairs = self.fault == "pairs"
        left, right = (array[..., 0::2], array[..., 1::2]) if pairs else (array[..., :half], array[..., half:])
        left, right = left * cos - right * sin, right * cos + left * sin
        return np.stack((left, right), -1).reshape(array.shape) if pairs else np.concatenate((left, right), -1)

    def norm(self, name: str, array: Array, weight: str | None = None) -> Array:
        """RMS norm over the last axis; an empty ``weight`` is none."""
        mean = (array * array).mean(axis=-1, keepdims=True)
        array = array / np.sqrt(mean + np.float32(self.config["rms_norm_eps"]))
        scale = self.weights[weight or f"model.{name}.weight"] if weight != "" else np.float32(1)
        if self.fault == "norm" and weight != "":
            scale = scale + np.float32(1)
        return self.keep(name, array * scale)

    def linear(self, name: str, array: Array) -> Array:
        """A product with a weight."""
        return self.keep(name, array @ self.weights[f"model.{name}.weight"].T)

    def gelu(self, array: Array) -> Array:
        """GELU in its tanh form."""
        if self.fault == "gelu":
            return (
                array * np.float32(0.5) * (1 + np.vectorize(math.erf, otypes=[np.float32])(array / np.float32(2**0.5)))
            )
        inner = np.float32((2 / math.pi) ** 0.5) * (array + np.float32(0.044715) * array * array * array)
        return np.float32(0.5) * array * (1 + np.tanh(inner))

    def keep(self, name: str, array: Array) -> Array:
        """Record a value under the name that ``cli.py probes`` lists."""
        self.inside[name] = np.ascontiguousarray(array)
        return array

    def sliding(self, index: int) -> bool:
        """Whether a layer sees a window only."""
        return bool(self.config["layer_types"][index] == "sliding_attention")

    def kept_rows(self, index: int, rows: int) -> int:
        """How many of a layer's newest rows the contract hands out: all, or at most window - 1."""
        return min(rows, self.config["sliding_window"] - 1 - (self.fault == "cache")) if self.sliding(index) else rows


def record(bundle: Path, case: str, fault: str, *, probes: bool) -> dict[str, Array]:
    """Play a case call by call; keys and values as docs/trace-format.md says."""
    given = np.load(bundle / "cases" / f"{case}.npz")
    (entry,) = (
        item for item in json.loads((bundle / "manifest.json").read_text("utf-8"))["cases"] if item["name"] == case
    )
    pads = (given["attention_mask"] == 0).sum(axis=1)
    engine, trace, start = Engine(bundle, fault), {}, 0
    done: list[tuple[list[int], list[tuple[Array, Array]]]] = []  # rows of each call, and its caches
    for step, tokens in enumerate(given["chunks"].tolist()):
        move = {"start": start, "rows": list(range(len(pads))), "past": []}
        move = entry["moves"][step] if entry["moves"] else move
        start, rows = move["start"], move["rows"]
        stop = start + tokens
        engine.caches = continued(move, done, pads)
        ids, positions = given["input_ids"][rows, start:stop], given["position_ids"][rows, start:stop]
        outputs = engine(ids, given["attention_mask"][rows, :stop], positions)
        trace |= {f"{case}/step_{step}/{name}": value for name, value in outputs.items()}
        if probes:
            trace |= {f"{case}/step_{step}/probes/{name}": value for name, value in engine.inside.items()}
        done.append((rows, engine.caches))
        start = stop
    return trace


def continued(move: dict[str, Any], done: list[Any], pads: Array) -> list[tuple[Array, Array]]:
    """Caches of the ``start`` slots before a call: those in hand, or for each row those of an earlier call."""
    start = move["start"]
    if not start:
        return []
    past = move["past"] or [(len(done) - 1, place) for place in range(len(move["rows"]))]
    parts = []
    for row, (call, place) in zip(move["rows"], past, strict=True):
        rows, caches = done[call]
        pad = int(pads[row] - pads[rows[place]])  # a joining row is padded on the left, with zeros
        kept = [[array[place : place + 1, :, : start - pad] for array in pair] for pair in caches]
        parts.append([[np.pad(array, ((0, 0), (0, 0), (pad, 0), (0, 0))) for array in pair] for pair in kept])
    return [
        (np.concatenate([p[n][0] for p in parts]), np.concatenate([p[n][1] for p in parts]))
        for n in range(len(parts[0]))
    ]


def main() -> None:
    """Read the command line, play, write the trace."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help="the trace to write (.npz)")
    parser.add_argument("--case", action="append", help="repeatable; handoff-129 where left out")
    parser.add_argument("--fault", default="", choices=["", *FAULTS], help="a mistake to make")
    parser.add_argument("--no-probes", action="store_true", help="record outputs alone")
    given = parser.parse_args()
    trace: dict[str, Array] = {"engine": np.asarray("numpy engine" + (f", {given.fault}" if given.fault else ""))}
    for case in given.case or ["handoff-129"]:
        trace |= record(given.bundle, case, given.fault, probes=not given.no_probes)
    np.savez(given.output, **trace)
    print(f"{len(trace) - 1} values in {given.output}")


if __name__ == "__main__":
    main()
