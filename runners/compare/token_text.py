"""Token ids of a report as text, where the bundle has a tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.errors import BundleError
from kvparity.exporter.contract.model_files import open_tokenizer
from kvparity.runners.diff.records import CaseRecord, TopDifference
from kvparity.runners.report.report import Report

__all__ = ["with_token_text"]

TokenText = Callable[[int], str]


def with_token_text(bundle: Bundle, report: Report) -> Report:
    """The report with the text of every token that it names."""
    if not any(record.top_differences for record in report.cases):
        return report
    text = _token_text(bundle)
    return replace(report, cases=tuple(_case(record, text) for record in report.cases))


def _case(record: CaseRecord, text: TokenText) -> CaseRecord:
    return replace(record, top_differences=tuple(_difference(found, text) for found in record.top_differences))


def _difference(found: TopDifference, text: TokenText) -> TopDifference:
    return replace(found, choices=tuple(replace(choice, text=text(choice.token)) for choice in found.choices))


def _token_text(bundle: Bundle) -> TokenText:
    """Gives a token's text where the bundle has a tokenizer, and its number where it has not."""
    try:
        tokenizer = open_tokenizer(bundle.root / "tokenizer.json")
    except BundleError:  # missing or foreign; a report needs no text
        return lambda token: f"token {token}"
    return lambda token: repr(tokenizer.decode([token], skip_special_tokens=False))
