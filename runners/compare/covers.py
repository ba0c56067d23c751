"""What a verdict covers: cases, positions, windows and cache rows that were judged, of how many there are."""

from __future__ import annotations

from collections.abc import Sequence

from kvparity.exporter.contract.bundle import Bundle
from kvparity.runners.diff.records import CaseRecord, Covers

__all__ = ["covers_of"]


def covers_of(bundle: Bundle, records: Sequence[CaseRecord]) -> Covers:
    """What was judged in the records of one question.

    Args:
        bundle: Knows all cases, and the windows of its model.
        records: One per runner and case; a case counts where every runner that played was judged on all of its calls.
    """
    names = {record.case for record in records if record.compared}
    whole = names - {record.case for record in records if record.message or record.played < record.steps}
    lived = [
        sum(record.chunks) - min(record.pads, default=0) for record in records if record.case in whole and record.chunks
    ]
    windows = sorted(bundle.model.windows)
    longest = max(lived, default=0)
    known = {entry.name for entry in bundle.manifest.cases}
    rows = [sum(record.rows[index] for record in records) for index in (0, 1)]
    return Covers(
        cases=len(whole),
        of_cases=len(known | names),
        longest=longest,
        windows=tuple(window for window in windows if longest > window),
        windows_not_crossed=tuple(window for window in windows if longest <= window),
        rows=rows[0],
        of_rows=rows[1],
        derived_logits=bundle.manifest.head is not None,
    )
