"""The table of mutants, for a terminal and for docs/mutants.md, and what a run must show."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from tests.mutants.mutant import Mutant
from tests.mutants.trial import Outcome

__all__ = ["failures", "markdown", "print_table", "summary"]

_SHARE = 0.95
_HEAD = (
    "mutant",
    "verdict",
    "short prompt",
    "--tol 1e-4",
    "--exact",
    "--self",
    "max diff",
    "located at",
    "right",
    "cause",
    "from a trace",
    "its cause",
)


def _cells(item: Outcome) -> tuple[str, ...]:
    applicable = item.verdict != "not applicable"
    return (
        item.name,
        item.verdict,
        ("seen" if item.short else "missed") if applicable else "–",
        item.tol_case or "missed",
        item.exact_case or "–",
        item.self_case or "–",
        f"{item.largest:.1e}",
        item.probe or "–",
        ("yes" if item.located else "no") if item.probe else "–",
        item.cause or "–",
        ("right" if item.recorded_right else item.recorded) if item.recorded else "–",
        item.recorded_cause or "–",
    )


def summary(outcomes: Sequence[Outcome]) -> list[str]:
    """The run in a few sentences."""
    tried = [item for item in outcomes if item.name != "untouched"]
    killed = [item for item in tried if item.verdict == "killed"]
    located = [item for item in killed if item.located]
    equivalent = [item for item in tried if item.verdict == "equivalent"]
    unseen = [item for item in killed if not item.short]
    exact_only = [item for item in killed if not item.tol_case]
    recorded = [item for item in killed if item.recorded]
    return [
        f"{len(tried)} mutants: {len(killed)} killed, {len(equivalent)} equivalent as declared, "
        f"{len(tried) - len(killed) - len(equivalent)} otherwise.",
        f"{len(located)} of {len(killed)} killed mutants located where the fault was put.",
        f"{len(unseen)} are invisible to one short prompt with allclose; {len(exact_only)} of all killed stay under "
        "1e-4 in every case of the schedule, and only exactness kills them.",
        f"{sum(item.recorded_right for item in recorded)} of {len(recorded)} located from a float32 recording alone, "
        f"{sum(bool(item.recorded_cause) for item in recorded)} with a likely cause.",
        f"Untouched graph accused: {'yes' if any(_accused(item) for item in outcomes) else 'no'}.",
    ]


def _accused(item: Outcome) -> bool:
    return item.name == "untouched" and (item.verdict != "match" or bool(item.self_case) or bool(item.probe))


def failures(outcomes: Sequence[Outcome]) -> list[str]:
    """What the referee must do and did not; empty where it did."""
    problems = [f"untouched graph accused: {item.exact_case or item.self_case}" for item in outcomes if _accused(item)]
    problems += [
        f"survived: {item.name}" for item in outcomes if item.verdict == "survived" and item.name != "untouched"
    ]
    problems += [
        f"declared equivalent, but killed: {item.name}" for item in outcomes if item.verdict == "not equivalent"
    ]
    killed = [item for item in outcomes if item.verdict == "killed"]
    missed = [item.name for item in killed if not item.located]
    if killed and len(missed) > (1 - _SHARE) * len(killed):
        problems.append(f"located less than {_SHARE:.0%}: {', '.join(missed)}")
    recorded = [item for item in killed if item.recorded]
    astray = [item.name for item in recorded if not item.recorded_right]
    if recorded and len(astray) > (1 - _SHARE) * len(recorded):
        problems.append(f"located from recordings less than {_SHARE:.0%}: {', '.join(astray)}")
    return problems


def print_table(outcomes: Sequence[Outcome]) -> None:
    """Print the table and the summary."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in _HEAD:
        table.add_column(title, no_wrap=True)
    for item in outcomes:
        style = {"killed": "green" if item.located else "yellow", "survived": "red"}.get(item.verdict, "")
        table.add_row(*_cells(item), style="" if item.name == "untouched" else style)
    Console(width=220 if not Console().is_terminal else None).print(table)
    for line in summary(outcomes):
        print(line)


def markdown(outcomes: Sequence[Outcome], catalogue: Sequence[Mutant]) -> str:
    """docs/mutants.md."""
    reasons = {mutant.name: mutant.equivalent for mutant in catalogue}
    lines = [
        "# Mutation testing of the referee",
        "",
        "Faults that exporters really make, put one at a time into a right pair of graphs; then every check is asked.",
        "`make mutants` repeats this and fails where a fault survives, where fewer than 95 % are located, or where the",
        "untouched graph is accused. The model is a seeded Gemma 4 at toy size with every feature that the faults need",
        "(window 8), evaluated in float64; this page is written by `make mutants`.",
        "",
        "*short prompt*: the logits of one prefill shorter than the window, allclose with rtol 1e-3 and atol 1e-4,",
        "which is how exports are usually checked. *--tol 1e-4*: first case of the position schedule with a larger",
        "difference anywhere in logits or caches. *--exact*: first case over 1e-10 in float64. *--self*: first",
        "identity that breaks (chunks, padding, hand-off), without any reference. *located at*: the value that",
        "`--locate` names. *from a trace*: the same where the mutant is an engine in float32 that can't be run, but",
        "has recorded its first case over 1e-4 with every value inside (docs/trace-format.md).",
        "",
        *[f"- {line}" for line in summary(outcomes)],
        "",
        "Hosts have faults of their own: positions not set back, rejected rows that stay in caches and mask, a",
        "row too many dropped, a ring one row short, beams reordered in keys alone, the state after a draft instead of",
        "before it. The graphs are right then, so a recording is judged: `tests/mutants/hosts.py` has them, and",
        "`tests/test_host_mutants.py` shows each killed by a case of the schedule and located.",
        "",
        "| " + " | ".join((_HEAD[0], "fault", *_HEAD[1:])) + " |",
        "|" + "---|" * (len(_HEAD) + 1),
    ]
    for item in outcomes:
        first, *rest = _cells(item)
        what = item.what + (f" ({reasons[item.name]})" if reasons.get(item.name) else "")
        lines.append("| " + " | ".join((first, what, *rest)).replace("*", "\\*") + " |")
    return "\n".join(lines) + "\n"
