"""The answer of one comparison as callers hold it: the record, and the same as a file of any format."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kvparity.exporter.contract.errors import TraceError
from kvparity.exporter.contract.files import write_whole
from kvparity.runners.diff.records import ReportRecord

__all__ = ["FORMATS", "Report"]

FORMATS = {".html": "html", ".json": "json", ".md": "markdown", ".xml": "junit"}


@dataclass(frozen=True)
class Report(ReportRecord):
    """Everything that one comparison found; ``verdict`` is ``match``, ``mismatch`` or ``error`` (could not tell).

    ``print(report)`` shows what the command line shows, and a notebook shows the HTML page.

    Example:
        >>> report = kvparity.compare("tiny", runners="ort")  # doctest: +SKIP
        >>> report.verdict  # doctest: +SKIP
        'match'
        >>> report.save("report.html")  # doctest: +SKIP
    """

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Read a report that was written as JSON.

        Args:
            path: The file.

        Raises:
            TraceError: It cannot be read, or is no report of this version.
        """
        from kvparity.runners.report.json_file import read_report

        return read_report(Path(path), cls)

    def save(self, path: str | Path, form: str | None = None) -> Path:
        """Write the report to a file.

        Args:
            path: Where to. Its suffix chooses the format: ``.html``, ``.json``, ``.md`` or ``.xml`` (JUnit).
            form: ``html``, ``json``, ``markdown`` or ``junit``, whatever the suffix says.

        Returns:
            The path.

        Raises:
            TraceError: The suffix names no format, or the file cannot be written.
        """
        target = Path(path)
        chosen = form or FORMATS.get(target.suffix)
        if chosen is None:
            known = ", ".join(FORMATS)
            raise TraceError(f"{target}: suffix {target.suffix!r} names no format of a report; known are {known}")
        write_text(target, self.text(chosen))
        return target

    def text(self, form: str = "text") -> str:
        """The report as ``text``, ``html``, ``json``, ``markdown`` or ``junit``."""
        return _writer(form)(self)

    def _repr_html_(self) -> str:
        """What a notebook shows: the page in a frame of its own, so that its style stays inside."""
        from html import escape

        page = escape(self.text("html"), quote=True)
        return f'<iframe srcdoc="{page}" style="width:100%;height:70vh;border:1px solid #8888"></iframe>'

    def __str__(self) -> str:
        return self.text()


def write_text(path: Path, text: str) -> None:
    """Write a report's file.

    Raises:
        TraceError: It cannot be written.
    """
    try:
        write_whole(path, text)
    except OSError as error:
        raise TraceError(f"{path}: cannot be written ({error.strerror}); choose another place") from error


def _writer(form: str) -> Callable[[ReportRecord], str]:
    if form == "json":
        from kvparity.runners.report.json_file import json_report

        return json_report
    if form == "html":
        from kvparity.runners.report.html import html_report

        return html_report
    if form == "markdown":
        from kvparity.runners.report.markdown import markdown_report

        return markdown_report
    if form == "junit":
        from kvparity.runners.report.junit import junit_report

        return junit_report
    return _terminal_text


def _terminal_text(report: ReportRecord) -> str:
    from kvparity.runners.report.text import print_report

    stream = io.StringIO()
    print_report(report, stream)
    return stream.getvalue()
