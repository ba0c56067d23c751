"""One mutant put before the referee: which check sees it, in which case first, and where it is located."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.vectors import Vectors, expected_outputs
from kvparity.runners.base import Array
from kvparity.runners.compare.identities import Played, identities, judge_identity, play_whole
from kvparity.runners.decode.play import play
from kvparity.runners.diff.location import Location
from kvparity.runners.diff.names import KINDS, axis_of, is_state
from kvparity.runners.engines.exact import ExactSession
from kvparity.runners.locate.export_fault import Watcher, export_fault
from kvparity.runners.locate.graphs import open_graph
from kvparity.runners.locate.search import make_call
from tests.mutants.editor import Editor, NotApplicableError
from tests.mutants.mutant import Mutant
from tests.mutants.recording import RecordingEngine, locate_recorded

__all__ = ["EXACT_TOL", "TOL", "Outcome", "decisive_cases", "first_difference", "killed_in", "mutated", "try_mutant"]

TOL, EXACT_TOL = 1e-4, 1e-10
_SAME = 1e-9  # identities in float64


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant.

    Attributes:
        name: The mutant.
        what: The fault in words.
        verdict: ``killed``, ``survived``, ``match`` (the untouched graph), ``equivalent`` (as declared),
            ``not equivalent`` (declared, but killed) or ``not applicable``.
        short: Whether one short prompt's logits differ by more than rtol 1e-3 and atol 1e-4.
        tol_case: First case that differs by more than 1e-4; empty where none does.
        exact_case: First case that differs by more than 1e-10 in float64.
        self_case: First identity that does not hold.
        largest: Largest difference over all cases; inf where a shape is wrong or a call fails.
        probe: Value that locating names.
        node: ONNX node that it names.
        cause: Likely cause that it gives.
        located: Whether that is where the fault was put.
        sentence: The answer in words.
        recorded: Value that locating names from a float32 recording of the first case over 1e-4; empty without one.
        recorded_cause: Likely cause that it gives.
        recorded_right: Whether that is where the fault was put.
    """

    name: str
    what: str
    verdict: str
    short: bool = False
    tol_case: str = ""
    exact_case: str = ""
    self_case: str = ""
    largest: float = 0.0
    probe: str = ""
    node: str = ""
    cause: str = ""
    located: bool = False
    sentence: str = ""
    recorded: str = ""
    recorded_cause: str = ""
    recorded_right: bool = False


def try_mutant(bundle: Bundle, mutant: Mutant | None, vectors: Sequence[Vectors], watcher: Watcher) -> Outcome:
    """Put a fault into a bundle's graphs and ask every check.

    Args:
        bundle: A right bundle.
        mutant: The fault; None tries the untouched graphs.
        vectors: Reference vectors of all cases, in the schedule's order.
        watcher: The reference whose inside can be seen.
    """
    name, what = (mutant.name, mutant.what) if mutant else ("untouched", "nothing was changed")
    try:
        with mutated(bundle, mutant) as damaged:
            return _recorded(bundle, damaged, mutant, vectors, _judge(damaged, mutant, vectors, watcher))
    except NotApplicableError as error:
        return Outcome(name, what, "not applicable", sentence=str(error))


def killed_in(bundle: Bundle, mutant: Mutant, vectors: Iterable[Vectors]) -> str:
    """The first case that differs by more than 1e-10 in float64; empty where none does."""
    with mutated(bundle, mutant) as damaged:
        session = ExactSession(damaged, "ort")
        return next((case.case.name for case in vectors if first_difference(damaged, session, case)[0] > EXACT_TOL), "")


def decisive_cases(bundle: Bundle) -> list[Vectors]:
    """Cases of the schedule that between them see every fault of the catalogue, in the schedule's order."""
    window = bundle.model.window or 64
    wanted = {f"prefill-{n}" for n in (window - 1, window + 1, 2 * window + 3)}
    wanted |= {
        f"handoff-{window}",
        f"chunk-{window + 1}",
        "decode-only",
        "chunk-cross",
        "batch-ragged",
        "special-tokens",
    }
    return [bundle.vectors(e.name) for e in bundle.manifest.cases if e.name in wanted]


@contextmanager
def mutated(bundle: Bundle, mutant: Mutant | None) -> Iterator[Bundle]:
    """A temporary bundle whose graphs carry the fault; everything else is copied (onnx_ir refuses hard links)."""
    with TemporaryDirectory(prefix=".mutant-", dir=bundle.root.parent) as name:
        root = Path(name)
        kept = [entry for entry in bundle.manifest.all_files() if not entry.path.endswith(".onnx")]
        for entry in kept:
            (root / entry.path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.root / entry.path, root / entry.path)
        for kind in bundle.manifest.graphs:
            model = open_graph(bundle, kind)
            if mutant is not None and kind in mutant.graphs:
                mutant.edit(Editor(model, bundle.model, kind))
            ir.save(model, root / bundle.graph(kind).file.path)
        yield Bundle(root, bundle.manifest)


def _judge(bundle: Bundle, mutant: Mutant | None, vectors: Sequence[Vectors], watcher: Watcher) -> Outcome:
    session = ExactSession(bundle, "ort")
    worst: dict[str, tuple[float, int]] = {}
    for case in vectors:
        worst[case.case.name] = first_difference(bundle, session, case)
    tol_case = next((name for name, (size, _) in worst.items() if size > TOL), "")
    exact_case = next((name for name, (size, _) in worst.items() if size > EXACT_TOL), "")
    found = _locate(bundle, exact_case, worst, vectors, watcher)
    expected = "" if mutant is None else mutant.where
    declared = mutant is not None and mutant.equivalent
    return Outcome(
        name=mutant.name if mutant else "untouched",
        what=mutant.what if mutant else "nothing was changed",
        verdict=_verdict(bool(exact_case), bool(declared)) if mutant or exact_case else "match",
        short=_short_prompt(bundle, session, vectors),
        tol_case=tol_case,
        exact_case=exact_case,
        self_case=_identities(bundle, session),
        largest=max(size for size, _ in worst.values()),
        probe=found.probe if found else "",
        node=found.node if found else "",
        cause=found.cause if found else "",
        located=found is not None and any(fnmatchcase(found.probe, glob) for glob in expected.split("|")),
        sentence=found.sentence if found else "",
    )


def _recorded(
    right: Bundle, damaged: Bundle, mutant: Mutant | None, vectors: Sequence[Vectors], outcome: Outcome
) -> Outcome:
    """The outcome with what a trace alone says: the mutant is then an engine that can't be run."""
    if not outcome.tol_case or mutant is None:
        return outcome
    case = next(item for item in vectors if item.case.name == outcome.tol_case)
    found = locate_recorded(right, RecordingEngine(damaged), case, TOL)
    if found is None:
        return outcome
    at = any(fnmatchcase(found.probe, glob) for glob in mutant.where.split("|"))
    return replace(outcome, recorded=found.probe, recorded_cause=found.cause, recorded_right=at)


def _verdict(killed: bool, declared: bool) -> str:
    if declared:
        return "not equivalent" if killed else "equivalent"
    return "killed" if killed else "survived"


def first_difference(
    bundle: Bundle, session: ExactSession, vectors: Vectors, limit: float = EXACT_TOL
) -> tuple[float, int]:
    """Largest difference from float64 PyTorch in a case, and the first call over the limit."""
    largest, first = 0.0, -1
    exact, live = vectors.float64(), vectors.case.mask == 1
    try:
        for result in play(bundle, session, vectors.case):
            wanted = expected_outputs(exact, result.step, bundle.model.slots, bundle.options)
            rows, got = live[result.step.which, : result.step.stop], result.outputs
            sizes = [_difference(name, want, got.get(name), rows) for name, want in wanted.items()]
            largest = max(largest, *sizes)
            if largest > limit and first < 0:
                first = result.step.index
            if largest == float("inf"):
                break
    except Exception:  # a wrong cache makes the next call fail: that is a difference
        return float("inf"), max(first, 0)
    return largest, first


def _difference(name: str, want: Array, got: Array | None, live: np.ndarray) -> float:
    """Largest difference over live slots; inf for a missing output, a wrong shape and numbers that are not finite."""
    if got is None or got.shape != want.shape:
        return float("inf")
    shown = np.abs(np.asarray(want) - np.asarray(got))
    if not is_state(name):
        rows = np.moveaxis(shown, axis_of(name), 1)
        shown = rows[live[:, live.shape[1] - rows.shape[1] :]]
    return float(np.max(np.where(np.isnan(shown), np.inf, shown), initial=0.0))


def _short_prompt(bundle: Bundle, session: ExactSession, vectors: Sequence[Vectors]) -> bool:
    """Today's practice: the logits of one prompt shorter than the window, rtol 1e-3, atol 1e-4."""
    length = (bundle.model.window or 64) - 1
    case = next(item for item in vectors if item.case.name == f"prefill-{length}")
    result = next(iter(play(bundle, session, case.case)))
    want, got = case.float64()["logits"], result.outputs["logits"]
    if want.shape != got.shape:
        return True
    return bool((np.abs(np.asarray(got) - np.asarray(want)) > 1e-4 + 1e-3 * np.abs(np.asarray(want))).any())


def _identities(bundle: Bundle, session: ExactSession) -> str:
    played: dict[str, Played] = {}
    limits = dict.fromkeys(KINDS, _SAME)
    window = bundle.model.window or 64
    decisive = {"stepwise", "chunks-cross", f"split-{window + 1}", f"handoff-{window}", "padded-3", "padded-decode-3"}
    for item in (item for item in identities(bundle.model, bundle.options) if item.name in decisive):
        key = f"{item.base.name} {item.base.chunks}"
        try:
            if key not in played:
                played[key] = play_whole(bundle, session, item.base)
            diff = judge_identity(bundle, session, item, played[key], limits, "exact")
        except Exception:  # a call that fails does not give the same numbers
            return item.name
        if diff.record.verdict != "match":
            return item.name
    return ""


def _locate(
    bundle: Bundle, name: str, worst: dict[str, tuple[float, int]], vectors: Sequence[Vectors], watcher: Watcher
) -> Location | None:
    if not name:
        return None
    case = next(item for item in vectors if item.case.name == name)
    fault = export_fault(bundle, make_call(bundle, case, max(worst[name][1], 0)), watcher)
    return fault.location if fault is not None else None
