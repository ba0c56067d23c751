"""Engine against engine, bundle against bundle: runners judged by a recording, or by another bundle of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.cases import Case, Step
from kvparity.exporter.contract.errors import BundleError
from kvparity.exporter.contract.spec import ModelSpec
from kvparity.runners.base import Array, Session
from kvparity.runners.decode.play import play
from kvparity.runners.diff.collect import CaseDiff, Collector
from kvparity.runners.diff.gate import compare_outputs
from kvparity.runners.diff.names import KINDS, axis_of, is_state, kind_of
from kvparity.runners.diff.records import Question
from kvparity.runners.diff.tensor import Expectation

__all__ = ["check_same_model", "judge_peer", "peer_limits"]


def check_same_model(bundle: Bundle, other: Bundle) -> None:
    """Refuse a bundle whose outputs are not those of the first.

    Raises:
        BundleError: Says what differs.
    """
    for what, own, found in zip(_FACTS, _facts(bundle.model), _facts(other.model), strict=True):
        if own != found:
            raise BundleError(f"{other.root}: is of another model: {what} {found}, {bundle.root} has {own}")


_FACTS = ("vocabulary of", "layers", "cache slots")


def _facts(model: ModelSpec) -> tuple[object, ...]:
    slots = [(slot.slot, slot.kv_heads, slot.head_dim, slot.value_head_dim) for slot in model.slots]
    return model.vocab_size, model.pattern, slots


def peer_limits(bundles: Sequence[Bundle], budget: float) -> dict[str, float]:
    """Limits by output kind: each side may be off by ``budget`` times PyTorch's own error in its dtype.

    Args:
        bundles: What each side ran; the same one twice where both did.
        budget: Multiple of PyTorch's own error that passes.
    """
    limits = dict.fromkeys(KINDS, 0.0)
    for bundle in bundles:
        noise = bundle.manifest.noise
        if not noise:
            raise BundleError(f"{bundle.root}: --tol auto needs recorded float64 vectors; give a number to --tol")
        cache = noise.get("cache", max(noise.values()))
        for kind in KINDS:
            limits[kind] += budget * noise.get(kind, cache)
    return limits


def judge_peer(
    question: Question,
    label: str,
    sides: tuple[tuple[Bundle, Session], tuple[Bundle, Session]],
    case: Case,
    limits: Mapping[str, float],
    chosen: Callable[[str], bool],
) -> CaseDiff:
    """Play a case on both sides, call by call, and compare what they return.

    Args:
        question: ``recording`` or ``bundle``.
        label: The runner's.
        sides: Bundle and session that are judged, and those that they are judged by.
        case: The case.
        limits: Largest difference that passes, by output kind.
        chosen: Whether an output is judged.
    """
    (bundle, session), (other, peer) = sides
    collector = Collector(question, label, case, bundle.model, limits)
    try:
        for result, wanted in zip(play(bundle, session, case), play(other, peer, case), strict=True):
            outputs = {name: np.asarray(array) for name, array in result.outputs.items()}
            reference = {name: np.asarray(array) for name, array in wanted.outputs.items() if chosen(name)}
            pairs = list(_expected(case, result.step, outputs, reference, limits))
            expected = [item for item, _ in pairs]
            judged = {item.name: own for item, own in pairs if own is not None}
            collector.add(result.step, compare_outputs(judged, expected), judged, expected)
    except Exception as error:  # an engine may raise anything; the other cases go on
        line = str(error).splitlines()[0] if str(error) else ""
        return collector.finish(f"{type(error).__name__}: {line}".replace(str(bundle.root), "BUNDLE"))
    return collector.finish()


def _expected(
    case: Case, step: Step, outputs: Mapping[str, Array], wanted: Mapping[str, Array], limits: Mapping[str, float]
) -> Iterator[tuple[Expectation, Array | None]]:
    """What one call must return, and the part of what it did return that both sides have.

    Two exports may keep another number of rows of a sliding cache, and of positions of logits: the newest of them are
    compared.
    """
    mask = case.mask.astype(bool)
    for name in (name for name in wanted if kind_of(name) in limits):
        values, own = wanted[name], outputs.get(name)
        axis = axis_of(name)
        if own is not None and axis and own.ndim == values.ndim:
            kept = min(own.shape[axis], values.shape[axis])
            own, values = (np.take(a, range(a.shape[axis] - kept, a.shape[axis]), axis) for a in (own, values))
        first = step.stop - (values.shape[axis] if axis else 1)
        live = np.ones((values.shape[0], step.stop - first), bool) if is_state(name) else mask[:, first : step.stop]
        dtype = own.dtype.name if own is not None and own.dtype.kind in "fV" else values.dtype.name
        yield Expectation(name, values, dtype, live, axis=axis, first=first, limit=limits[kind_of(name)]), own
