"""Judges a package that somebody else exported: adopts it, audits its weights, compares it with the checkpoint."""

from __future__ import annotations

import fnmatch
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvparity.exporter.contract.errors import BundleError

if TYPE_CHECKING:
    from kvparity.exporter.checkpoint.source import Checkpoint
    from kvparity.exporter.contract.bundle import Bundle
    from kvparity.exporter.contract.spec import GraphKind
    from kvparity.runners.adopt.package import Package
    from kvparity.runners.base import Session
    from kvparity.runners.report.report import Report

__all__ = ["Limits", "judge_package"]

Say = Callable[[str], None]


@dataclass(frozen=True)
class Limits:
    """What a foreign graph may use, and how long cases may be.

    Attributes:
        limit: Longest case in tokens; None takes the model's schedule.
        seconds: Most that one call may take, and that loading may take.
        megabytes: Most address space of a process that runs a graph; None takes the machine's memory, 0 sets no limit.
    """

    limit: int | None = None
    seconds: float = 120.0
    megabytes: int | None = None


def judge_package(
    path: Path,
    checkpoint: Checkpoint,
    output: Path | None,
    variant: str,
    limits: Limits,
    compare: Callable[[Bundle, Mapping[str, Any]], Report],
    asked: Mapping[str, Any],
    say: Say,
) -> Report:
    """Adopt, audit and compare; what differs is evaluated in float64 and located without being asked.

    Args:
        path: The package.
        checkpoint: What it is judged against.
        output: Folder that keeps the adopted bundle; None keeps none.
        variant: Which of several graphs of the package.
        limits: Of the package's graphs.
        compare: Compares a bundle: :func:`kvparity.compare` with these options.
        asked: Options of the comparison that were given.
        say: Takes a line of progress at a time.
    """
    from kvparity.runners.adopt.adopt import ROUNDED_ACTIVATIONS
    from kvparity.runners.adopt.package import find_package
    from kvparity.runners.isolation.limits import limited

    package = find_package(path, variant)
    bounds = limited(limits.seconds, limits.megabytes)
    with bounds, _adopted(package, checkpoint, output, limits.limit, say) as adopted:
        bundle, record, schedule = adopted
        asked = {**asked, "cases": _offered(asked.get("cases", ()), bundle, schedule)}
        assert bundle.manifest.foreign is not None
        rounding = compare(bundle, asked) if bundle.manifest.foreign.offers_it(ROUNDED_ACTIVATIONS) else None
        if rounding is not None:
            asked = {**asked, "runners": float64_graph}
        report = compare(bundle, asked)
        if rounding is not None:
            record = replace(record, cost=f"{record.cost}. {_as_run(rounding, report)}")
        if outputs := _comparable(report, asked):
            record = replace(record, left_out=(*record.left_out, "keys, which it stores in a convention of its own"))
            report = compare(bundle, {**asked, "outputs": outputs})
        first = report.first_divergence
        if first is not None and not asked.get("locate") and not asked.get("exact"):
            say("evaluating in float64 and locating")
            closer = compare(bundle, {**asked, "cases": (first.case,), "exact": True, "locate": True})
            questions = (*report.questions, *(item for item in closer.questions if item.question == "exact"))
            cases = (*report.cases, *(item for item in closer.cases if item.question == "exact"))
            report = replace(report, questions=questions, cases=cases, locations=closer.locations)
        verdict = "mismatch" if record.audit.faults else report.verdict
        return replace(report, package=record, verdict=verdict)


def _offered(patterns: Sequence[str], bundle: Bundle, schedule: Sequence[str]) -> tuple[str, ...]:
    """Patterns of cases without those that name nothing but cases that the package does not offer."""
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    kept = [entry.name for entry in bundle.manifest.cases]
    found = tuple(p for p in patterns if fnmatch.filter(kept, p) or not fnmatch.filter(schedule, p))
    if patterns and not found:
        raise BundleError(f"the package offers none of {', '.join(patterns)}; what it offers is {', '.join(kept)}")
    return found


def float64_graph(bundle: Bundle) -> Session:
    """The package's graphs in float64: what they say, without what rounded activations do to it."""
    from kvparity.runners.isolation.process import open_runner
    from kvparity.runners.spec import RunnerSpec

    return _InContract(bundle, open_runner(bundle, RunnerSpec("exact")))


class _InContract:
    """A float64 session whose outputs have the dtypes that the graphs' own have."""

    def __init__(self, bundle: Bundle, inner: Session) -> None:
        self._bundle, self._inner, self.info = bundle, inner, inner.info

    def run(self, graph: GraphKind, inputs: Mapping[str, Any]) -> dict[str, Any]:
        from kvparity.exporter.contract.dtypes import numpy_dtype
        from kvparity.runners.compare.expectations import dtype_of

        outputs = self._inner.run(graph, inputs)
        return {name: array.astype(numpy_dtype(dtype_of(self._bundle, name))) for name, array in outputs.items()}

    def close(self) -> None:
        """Close the session."""
        self._inner.close()


def _as_run(rounding: Report, float64: Report) -> str:
    """What rounded activations cost, in words; of cases that are right without them, where there are any."""
    right = {case.case for case in float64.cases if case.verdict == "match"}
    found = [item for item in rounding.results if item.tensor == "logits"]
    sizes = [item.max_abs_diff for item in found if item.case in right or not right]
    largest = max((size for size in sizes if isinstance(size, float)), default=0.0)
    names = ", ".join(runner.name for runner in rounding.runners)
    return (
        f"{names} rounds activations to 8 bits as the graph asks for: logits differ by up to {largest:.2g}; the graph "
        "is judged in float64, without that"
    )


def _comparable(report: Report, asked: Mapping[str, Any]) -> tuple[str, ...]:
    """Outputs that are compared where every key differs and nothing else does: keys stored before rotation, say."""
    wrong = {result.tensor for result in report.results if result.verdict == "mismatch"}
    keys = {result.tensor for result in report.results if result.tensor.endswith(".key")}
    return ("logits", "present.*.value") if wrong and wrong == keys and not asked.get("outputs") else ()


@contextmanager
def _adopted(
    package: Package, checkpoint: Checkpoint, output: Path | None, limit: int | None, say: Say
) -> Iterator[tuple[Bundle, Any, Sequence[str]]]:
    """A bundle of a package with its record and the schedule of its model, kept in ``output`` or gone at the end."""
    from kvparity.exporter.contract.bundle import MANIFEST
    from kvparity.exporter.contract.files import new_folder

    if output is None:
        with tempfile.TemporaryDirectory(prefix="kvparity-judge-") as name:
            folder = Path(name) / "bundle"
            folder.mkdir()
            yield _adopt(package, checkpoint, folder, folder, limit, say)
        return
    with new_folder(output, MANIFEST) as folder:
        bundle, record, schedule = _adopt(package, checkpoint, folder, output, limit, say)
    yield replace(bundle, root=output), record, schedule


def _adopt(
    package: Package, checkpoint: Checkpoint, folder: Path, target: Path, limit: int | None, say: Say
) -> tuple[Bundle, Any, Sequence[str]]:
    """Copy, measure, audit, and record references."""
    from kvparity.exporter.adopted import describe_checkpoint
    from kvparity.exporter.contract.bundle import Bundle, write_manifest
    from kvparity.runners.adopt.adopt import adopt, listed_files, playable
    from kvparity.runners.adopt.audit import audit_package
    from kvparity.runners.adopt.head import write_head
    from kvparity.runners.adopt.rounded import rounded_reference, rounding_cost
    from kvparity.runners.diff.audit import PackageRecord
    from kvparity.runners.reference.model import load_reference
    from kvparity.runners.reference.record import record_cases

    side = describe_checkpoint(checkpoint, folder, target, limit)
    say(f"running {package.kind}")
    manifest = adopt(package, side.model, folder)
    assert manifest.foreign is not None
    cases, left_out = playable(side.cases, manifest.foreign)
    say("auditing weights")
    reference = load_reference(checkpoint.files(), "float32", folder)
    graphs = [folder / entry.file.path for entry in manifest.graphs.values()]
    audit = audit_package(graphs, reference)
    rounded = rounded_reference(graphs, audit, reference, manifest, checkpoint.files(), folder)
    cost = rounding_cost(reference, rounded, cases[0]) if rounded else ""
    origin = side.origin
    if folder == target:  # a bundle that goes again may name any place
        origin = replace(origin, path=os.path.relpath(checkpoint.folder, folder))
    manifest = replace(
        manifest,
        source=checkpoint.source,
        revision=checkpoint.revision,
        checkpoint=None if rounded else origin,
        versions=side.versions,
        weights=write_head(folder, rounded("float32").model if rounded else reference),
    )
    del reference
    say("recording references")
    recording = record_cases(Bundle(folder, manifest), cases, checkpoint.files(), opener=rounded)
    manifest = replace(
        manifest,
        cases=recording.cases,
        noise=recording.noise,
        sequences=recording.sequences,
        head=recording.head,
    )
    manifest = replace(manifest, files=listed_files(folder, manifest))
    write_manifest(folder, manifest)
    assert manifest.foreign is not None
    names = tuple(dict.fromkeys(package.graphs.values()))
    record = PackageRecord(package.kind, names, package.settings, manifest.foreign.offers, left_out, audit, cost)
    return Bundle(folder, manifest), record, [case.name for case in side.cases]
