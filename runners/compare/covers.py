"""What a verdict covers: cases, positions, windows and cache rows that were judged, of how many there are."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from kvparity.runners.diff.records import CaseRecord, Covers

__all__ = ["covers_of"]


def covers_of(
    records: Sequence[CaseRecord], known: Collection[str], windows: Collection[int], *, derived_logits: bool
) -> Covers:
    """What was judged in the records of one question.

    Args:
        records: One per runner and case; a case counts where every runner was judged on all of its calls.
        known: Names of all cases of the bundle.
        windows: Sliding windows of its model.
        derived_logits: Whether the reference's logits were rebuilt from recorded hidden states.
    """
    names = {record.case for record in records if record.compared}
    judged = {(record.runner, record.case) for record in records if record.compared and not _stopped(record)}
    runners = {record.runner for record in records}
    whole = {name for name in names if all((runner, name) in judged for runner in runners)}
    lived = [
        max(stop for _, stop in record.spans()) - min(record.pads, default=0)
        for record in records
        if record.case in whole and record.chunks
    ]
    longest = max(lived, default=0)
    rows = [sum(record.rows[index] for record in records) for index in (0, 1)]
    return Covers(
        cases=len(whole),
        of_cases=len({*known, *names}),
        longest=longest,
        windows=tuple(window for window in sorted(windows) if longest > window),
        windows_not_crossed=tuple(window for window in sorted(windows) if longest <= window),
        rows=rows[0],
        of_rows=rows[1],
        derived_logits=derived_logits,
    )


def _stopped(record: CaseRecord) -> bool:
    return bool(record.message) or record.played < record.steps
