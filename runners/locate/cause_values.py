"""Likely causes in values: weights, factors, neighbours, heads, norms, precision."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np

from kvparity.runners.locate.evidence import Evidence, Float, Said, equal, finite, live

_HALF = (10, 16)  # ONNX's numbers of float16 and bfloat16


def wrong_weight(evidence: Evidence) -> Said:
    """An initializer of the segment is not what the checkpoint holds."""
    found = evidence.inspection
    if found is None or not found.wrong_weights:
        return None
    name, (want, got) = next(iter(found.wrong_weights.items()))
    if want.shape != got.shape:
        return "weight", f"weight {name} has shape {got.shape}, the checkpoint's has {want.shape}"
    wrong = np.asarray(want != got)
    text = f"weight {name} differs from the checkpoint in {int(wrong.sum())} of {wrong.size} values"
    if wrong.ndim == 2:
        rows = np.flatnonzero(wrong.any(axis=1))
        if rows.size == 1:
            text += f", all in row {rows[0]}"
        if not np.asarray(got)[wrong].any():
            text += ", which are zero"
    with np.errstate(all="ignore"):
        ratio = np.asarray(got, np.float64)[wrong] / np.asarray(want, np.float64)[wrong]
    if np.isfinite(ratio).all() and np.ptp(ratio) < 1e-6 * max(abs(float(ratio.mean())), 1e-30) and ratio.mean():
        text += f", by a factor of {float(ratio.mean()):.9g}"
    if equal(evidence, np.asarray(got, np.float64), np.asarray(want, np.float64) + 1.0, 1e-6):
        return "norm-weight", f"weight {name} is the checkpoint's plus one: the convention of another family"
    if equal(evidence, np.asarray(got, np.float64), np.asarray(want, np.float64), 1e-3) and np.array_equal(
        np.asarray(got, np.float16), np.asarray(got)
    ):
        text += "; its values were rounded to float16"
    return "weight", text


def other_value(evidence: Evidence) -> Said:
    """The value is another probe's: a neighbour layer's, the other kind's, something before or after it."""
    if not finite(evidence.diff):
        return None
    got = live(evidence, evidence.diff.got)
    if not got.size or np.ptp(got) == 0:
        return None
    for name, array in evidence.reference.items():
        if name == evidence.diff.probe or array.size != evidence.diff.want.size or name.startswith("mask."):
            continue
        same = array.reshape(evidence.diff.want.shape)  # a projection and its heads are the same numbers
        if equal(evidence, got, live(evidence, same)):
            return "other-value", f"it holds what {name} should be"
    return None


def constant_factor(evidence: Evidence) -> Said:
    """Expected and actual are in one constant ratio."""
    if not finite(evidence.diff):
        return None
    want, got = live(evidence, evidence.diff.want), live(evidence, evidence.diff.got)
    power = float((want * want).sum())
    if not power:
        return None
    factor = float((want * got).sum()) / power
    if abs(factor - 1) < max(1e-12, evidence.precision) or not equal(evidence, got, want * factor, 1e-8) or not factor:
        return None
    known = _known_factor(evidence, factor)
    return "factor", f"every value is {factor:.9g} times what it should be" + (f", which is {known}" if known else "")


def _known_factor(evidence: Evidence, factor: float) -> str:
    model = evidence.model
    head = model.slots[0].head_dim if model.slots else 1
    named = {
        "the square root of 2": math.sqrt(2),
        f"the square root of the hidden size {model.hidden_size}": math.sqrt(model.hidden_size),
        f"the square root of the head size {head}": math.sqrt(head),
    }
    for words, number in named.items():
        if abs(factor / number - 1) < 1e-6:
            return words
        if abs(factor * number - 1) < 1e-6:
            return f"one over {words}"
    return ""


def half_precision(evidence: Evidence) -> Said:
    """Every value is one that float16 or bfloat16 can hold, although the reference's are not."""
    if not finite(evidence.diff):
        return None
    got, want = live(evidence, evidence.diff.got), live(evidence, evidence.diff.want)
    with np.errstate(over="ignore"):
        half = np.array_equal(got.astype(np.float16).astype(np.float64), got)
    if (
        half
        and not np.array_equal(want.astype(np.float16).astype(np.float64), want)
        and equal(evidence, got, want, 1e-2)
    ):
        return "half-precision", "every value is one that float16 can hold: it was computed or stored in half precision"
    bits = got.astype(np.float32).view(np.uint32) & 0xFFFF
    if not bits.any() and np.array_equal(got.astype(np.float32), got) and equal(evidence, got, want, 5e-2):
        return "half-precision", "every value is one that bfloat16 can hold: it was computed or stored in bfloat16"
    return None


def cast_away(evidence: Evidence) -> Said:
    """A node of the segment casts to a narrower float."""
    found = evidence.inspection
    for node in found.nodes if found is not None else ():
        low = node.op_type == "Cast" and node.attributes["to"].as_int() in _HALF
        if low and node in found.guilty:  # type: ignore[union-attr]
            return "half-precision", f"node {node.name} casts to a narrower type"
    return None


def gelu_variant(evidence: Evidence) -> Said:
    """The other formula of GELU (erf for tanh or tanh for erf)."""
    found = evidence.inspection
    if found is None:
        return None
    scope = next((node.name.split("/")[0] for node in found.guilty if "act_fn" in (node.name or "")), None)
    if scope is None:
        return None
    inside = [node for node in found.nodes if (node.name or "").startswith(scope + "/")]
    outside = {value for node in found.nodes if node not in inside for value in node.inputs}
    last = next((node for node in reversed(inside) if node.outputs[0] in outside), inside[-1])
    made = np.asarray(found.values[str(last.outputs[0].name)], np.float64)
    gate_name = next((name for name in found.inputs if name in evidence.reference and "gate" in name), None)
    if gate_name is None:
        return None
    for words, value in activations(np.asarray(evidence.reference[gate_name], np.float64)).items():
        if equal(evidence, made.ravel(), value.ravel(), 1e-7):
            return "activation", f"the activation is {words}, which is not the model's"
    return None


def activations(gate: Float) -> dict[str, Float]:
    """Activation functions that are taken for one another, by their names."""
    inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
    with np.errstate(over="ignore"):
        return {
            "GELU with erf": 0.5 * gate * (1 + np.asarray(np.vectorize(math.erf)(gate / math.sqrt(2)))),
            "GELU with tanh": 0.5 * gate * (1 + np.tanh(inner)),
            "SiLU": gate / (1 + np.exp(-gate)),
            "ReLU": np.maximum(gate, 0.0),
            "the quick GELU": gate / (1 + np.exp(-1.702 * gate)),
        }


def permuted_heads(evidence: Evidence) -> Said:
    """Heads in another order."""
    diff = evidence.diff
    part = diff.probe.rpartition(".")[2]
    if part not in ("query", "key", "value", "context") or diff.want.ndim != 4 or not finite(diff):
        return None
    axis = 2 if part == "context" else 1
    heads = diff.want.shape[axis]
    if not 1 < heads <= 8:
        return None
    want, got = np.moveaxis(diff.want, axis, 0), np.moveaxis(diff.got, axis, 0)
    order = tuple(
        next((head for head in range(heads) if equal(evidence, np.asarray(mine), np.asarray(want[head]))), -1)
        for mine in got
    )
    if order in set(permutations(range(heads))) and order != tuple(range(heads)):
        return "heads", f"heads are in the order {list(order)}"
    if -1 not in order and order != tuple(range(heads)):
        return "heads", f"heads {list(order)} are used where {list(range(heads))} are expected"
    return None


def norm_factor(evidence: Evidence) -> Said:
    """A norm, or values after theirs: one factor per row (its scale), or one per channel (its weight)."""
    diff = evidence.diff
    if not ("norm" in diff.probe or diff.probe.endswith(".value")) or not finite(diff):
        return None
    want, got = (live(evidence, array).reshape(-1, array.shape[-1]) for array in (diff.want, diff.got))
    by_row = (want * got).sum(axis=1, keepdims=True) / np.maximum((want * want).sum(axis=1, keepdims=True), 1e-300)
    if equal(evidence, got, want * by_row, 1e-8):
        low, high = float(by_row.min()), float(by_row.max())
        if 1 - 1e-2 < low and high < 1 + 1e-2:
            return (
                "norm-eps",
                f"every row is scaled by its own factor, {low:.9g} to {high:.9g}: another epsilon, or another size of "
                "its input",
            )
        return "norm-scale", f"every row is scaled by its own factor, {low:.4g} to {high:.4g}: it is not normalised"
    by_channel = (want * got).sum(axis=0) / np.maximum((want * want).sum(axis=0), 1e-300)
    if equal(evidence, got, want * by_channel, 1e-8):
        return "norm-weight", f"every channel is scaled by a factor of its own: {_norm_weight(evidence, by_channel)}"
    return None


def _norm_weight(evidence: Evidence, ratio: Float) -> str:
    """What was made of a norm's weight, by the factor of each channel."""
    experiment = evidence.experiment
    weights = [] if experiment is None else [w for w in experiment.weights.values() if w.shape == ratio.shape]
    for weight in weights:
        used = ratio * weight
        if np.abs(used - weight - 1).max() < 1e-3:
            return "the norm's weight is taken as 1 + w, the convention of another family"
        if np.abs(used - weight + 1).max() < 1e-3:
            return "the norm's weight is taken as w - 1"
        if np.abs(used - 1).max() < 1e-3:
            return "the norm's weight is left out"
    return "the norm's weight"


def few_channels(evidence: Evidence) -> Said:
    """Only some output channels are wrong: rows of a weight."""
    diff = evidence.diff
    if not finite(diff) or diff.want.ndim != 3:
        return None
    wrong = np.abs(live(evidence, diff.want) - live(evidence, diff.got)).max(axis=0) > diff.limit
    if 0 < wrong.sum() <= max(wrong.size // 16, 1):
        shown = ", ".join(str(int(item)) for item in np.flatnonzero(wrong)[:4])
        return "weight", f"only output channels {shown} are wrong: those rows of a weight"
    return None


def few_tokens(evidence: Evidence) -> Said:
    """Only some tokens are wrong: rows of an embedding."""
    diff, call = evidence.diff, evidence.call
    if "embed" not in diff.probe or not finite(diff):
        return None
    tokens = call.case.tokens[:, call.step.start : call.step.stop]
    over = diff.over[:, -tokens.shape[1] :]
    wrong, right = set(tokens[over].tolist()), set(tokens[~over].tolist())
    if wrong and not wrong & right and len(wrong) < 4:
        return "weight", f"only token {', '.join(map(str, sorted(wrong)))} is wrong: that row of the embedding"
    return None
