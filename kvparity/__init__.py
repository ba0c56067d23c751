"""Exports decoder-only language models to ONNX with explicit caches, and proves what runtimes compute.

Example:
    >>> import kvparity
    >>> bundle = kvparity.export(None, "tiny")  # doctest: +SKIP
    >>> kvparity.compare(bundle).verdict  # doctest: +SKIP
    'match'

The functions stand in ``kvparity.api``. Importing this package loads none of the libraries that they use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kvparity.api import (
    bench,
    compare,
    diff_reports,
    export,
    inspect,
    judge,
    merge_reports,
    open_bundle,
    package,
    probes,
    ranges,
    run,
)
from kvparity.exporter.contract.errors import KvparityError
from kvparity.exporter.contract.spec import ExportOptions

if TYPE_CHECKING:
    from kvparity.exporter.contract.bundle import Bundle
    from kvparity.runners.base import RunnerInfo, Session
    from kvparity.runners.inspect.listing import (
        list_cases,
        list_families,
        list_metrics,
        list_packages,
        list_runners,
    )
    from kvparity.runners.report.report import Report

__all__ = [
    "Bundle",
    "ExportOptions",
    "KvparityError",
    "Report",
    "RunnerInfo",
    "Session",
    "bench",
    "compare",
    "diff_reports",
    "export",
    "inspect",
    "judge",
    "list_cases",
    "list_families",
    "list_metrics",
    "list_packages",
    "list_runners",
    "merge_reports",
    "open_bundle",
    "package",
    "probes",
    "ranges",
    "run",
]

_LISTING = "kvparity.runners.inspect.listing"
_LATER = {
    "Bundle": "kvparity.exporter.contract.bundle",
    "Report": "kvparity.runners.report.report",
    "RunnerInfo": "kvparity.runners.base",
    "Session": "kvparity.runners.base",
    "list_cases": _LISTING,
    "list_families": _LISTING,
    "list_metrics": _LISTING,
    "list_packages": _LISTING,
    "list_runners": _LISTING,
}


def __getattr__(name: str) -> Any:
    """What lies in modules that load numpy or pydantic, when it is asked for."""
    if name not in _LATER:
        raise AttributeError(f"module 'kvparity' has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
