"""Numbers and verdicts in words, the same in every kind of report."""

from __future__ import annotations

import math
from collections.abc import Iterator

from kvparity.runners.diff.audit import PackageRecord
from kvparity.runners.diff.records import CaseRecord, Number, QuestionRecord, ReportRecord, RunnerRecord

__all__ = [
    "budget_cell",
    "package_lines",
    "position_cell",
    "round_up",
    "share",
    "short",
    "smallest",
    "times",
    "top_cell",
    "verdict_sentence",
]


_FAULTS = 8  # weights that are named in full


def short(value: Number | None, digits: int = 2) -> str:
    """A number in few characters; a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:.{digits}g}" if isinstance(value, float) else value


def round_up(value: Number | None, digits: int = 3) -> str:
    """A tolerance in few digits that still passes: rounded up, never down."""
    if not isinstance(value, float) or value == 0 or not math.isfinite(value):
        return short(value)
    for bump in (0, 1):
        exponent = math.floor(math.log10(value)) - digits + 1
        text = f"{math.ceil(value / 10.0**exponent) + bump}e{exponent}"
        if float(text) >= value:
            return f"{float(text):.{digits}g}"
    return repr(value)


def times(value: float) -> str:
    """A ratio as people say it: two digits, and no exponent below a million."""
    return f"{float(f'{value:.2g}'):,.0f}" if 100 <= value < 1e6 else f"{value:.2g}"


def share(value: float | None) -> str:
    """A share as a percentage that says 100 only where it is all."""
    if value is None:
        return "–"
    return "100 %" if value == 1 else f"{min(value * 100, 99.99):.4g} %"


def budget_cell(record: CaseRecord) -> str:
    """Worst budget of a case over its output kinds."""
    ratios = [budget.ratio_max for budget in record.budget.values()]
    return f"{times(max(ratios))}×" if ratios else "–"


def top_cell(record: CaseRecord) -> str:
    """Top-1 agreement, with the flips and how many of them are near ties."""
    if record.flips == 0:
        return share(record.top1)
    ties = f", {record.near_ties} near tie" + ("s" if record.near_ties != 1 else "") if record.near_ties else ""
    return f"{share(record.top1)} ({record.flips} differ{ties})"


def position_cell(record: CaseRecord) -> str:
    """Where the largest difference is: ``tensor @ slot``, and the call where there are several."""
    if record.worst_tensor is None or record.max_abs_diff == 0:
        return "–"
    place = f"{record.worst_tensor} @ {record.worst_position}"
    return f"{place}, step {record.worst_step}" if record.steps > 1 else place


def smallest(question: QuestionRecord) -> str:
    """The smallest tolerance, or budget, that would pass."""
    if question.tol == "auto":
        return f"Smallest passing budget: {round_up(question.needs_budget)} (allowed: {question.budget:g})"
    needed = round_up(question.needs_tol) if question.needs_tol is not None else "none would pass"
    return f"Smallest passing tolerance: {needed} (asked: {question.tol:g})"


def package_lines(package: PackageRecord) -> Iterator[str]:
    """What a judged foreign package offers, and its weights, in lines."""
    audit = package.audit
    yield f"Package: {package.kind}, {', '.join(package.graphs)}"
    for offer in package.offers:
        yield f"  {offer.name}: {'' if offer.offered else 'not offered, '}{offer.found}"
    rounded = f", {audit.count('rounded')} rounded ({', '.join(audit.codings)})" if audit.codings else ""
    doubled = sum(len(row.stored) > 1 for row in audit.weights)
    twice = f", {doubled} stored more than once" if doubled else ""
    yield f"Weights: {audit.count('exact')} of {len(audit.weights)} as in the checkpoint{rounded}{twice}"
    for row in audit.faults[:_FAULTS]:
        yield f"  {row.name}: {row.note}" + (f" ({row.how}, off by up to {row.error:.2g})" if row.stored else "")
    if len(audit.faults) > _FAULTS:
        yield f"  and {len(audit.faults) - _FAULTS} more weights"
    for constant in audit.constants:
        yield f"  {constant.name} is {constant.expected!r}, the graph's {constant.value} is {constant.found!r}"
    if package.cost:
        yield f"Rounding: {package.cost}"


def verdict_sentence(report: ReportRecord) -> str:
    """The answer in one sentence: the first divergence, what kept us from telling, or that all is well."""
    if report.first_divergence is not None:
        wrong = next((r for r in report.runners if r.name == report.first_divergence.runner), None)
        stored = f";{said}" if wrong is not None and (said := _stored(wrong)) else ""
        return f"MISMATCH  {report.first_divergence.sentence}{stored}{_below(report)}{_weights(report)}"
    if report.package is not None and report.package.audit.faults:
        return f"MISMATCH  of weights{_weights(report)}"
    covered = _covered(report)
    if report.verdict == "match":
        runners = ", ".join(runner.name + _stored(runner) for runner in report.runners if runner.available)
        what = f", {' and '.join(report.outputs)} only" if report.outputs else ""
        what += ", of logits each call's last position only" if report.last_logits else ""
        left = report.covers.windows_not_crossed if report.questions[0].question != "self" else ()
        match = f"MATCH up to position {report.covers.longest}" if left else "MATCH"
        return f"{match}  {runners}: {covered}{what}, {_tolerances(report)}{_below(report)}"
    if report.incomplete:
        return f"COULD NOT TELL  all that --require-complete asks for: {covered}"
    absent = next(
        (f"{runner.name}: {runner.message}" for runner in report.runners if not runner.available and runner.required),
        None,
    )
    failed = next((f"{case.runner}, case {case.case}: {case.message}" for case in report.cases if case.message), None)
    return f"COULD NOT TELL  {absent or failed or 'nothing was compared'}"


def _stored(runner: RunnerRecord) -> str:
    """What a recording was saved in, where the contract has another dtype."""
    found = runner.settings.get("recorded in", "")
    return f" (recorded in {found})" if found else ""


def _weights(report: ReportRecord) -> str:
    """The first weight of a judged package that is not the checkpoint's."""
    faults = report.package.audit.faults if report.package is not None else ()
    return f"; {faults[0].name}: {faults[0].note}" if faults else ""


def _covered(report: ReportRecord) -> str:
    """Cases that were judged, of how many, and which windows they pass."""
    covers = report.covers
    if report.questions[0].question == "self":
        return f"{len({record.case for record in report.cases})} cases"
    words = f"{covers.cases} of {covers.of_cases} cases"
    if report.package is not None and report.package.left_out:
        words += f" (not offered, and not judged: {', '.join(report.package.left_out)})"
    if covers.windows:
        words += f", past the window{'s' if len(covers.windows) > 1 else ''} of {_list(covers.windows)}"
    if covers.windows_not_crossed:
        words += f", none past the window of {_list(covers.windows_not_crossed)}"
    return words


def _list(numbers: tuple[int, ...]) -> str:
    return " and ".join(f"{number:,}" for number in numbers)


def _below(report: ReportRecord) -> str:
    """Where the fixed tolerance lies below PyTorch's own error, neither answer to it says much of an engine."""
    gate = report.questions[0]
    if gate.tol == "auto" or gate.question != "gate" or not isinstance(gate.noise, float) or gate.tol >= gate.noise:
        return ""
    return f"; the tolerance {gate.tol:g} lies below PyTorch's own float32 error, {short(gate.noise)}"


def _tolerances(report: ReportRecord) -> str:
    return "; ".join(_tolerance(record) for record in report.questions)


def _tolerance(record: QuestionRecord) -> str:
    against = {"gate": "PyTorch", "exact": "PyTorch in float64", "self": "itself"}.get(
        record.question, f"the {record.question}"
    )
    if record.tol == "auto" and isinstance(record.needs_budget, float):
        return f"at most {times(record.needs_budget)} × PyTorch's own float32 error"
    if record.tol == "auto":
        return f"within {2 * (record.budget or 0):g} × PyTorch's own error"
    return f"every value within {record.tol:g} of {against}"
