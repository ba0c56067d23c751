"""pytest plugin: one test per case of a bundle, for any object that has the methods of a ``Session``.

``pytest --kvparity BUNDLE --kvparity-runner mine:Session`` calls ``mine.Session(bundle)`` once and plays every
case on it. Without ``--kvparity`` nothing is imported and nothing happens.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kvparity.exporter.contract.errors import KvparityError
from kvparity.runners.compare.options import JudgeOptions

if TYPE_CHECKING:
    from kvparity.exporter.contract.bundle import Bundle, CaseEntry
    from kvparity.runners.base import RunnerSpec, Session
    from kvparity.runners.report.report import Report

__all__ = ["BundleCases", "CaseItem"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the plugin."""
    group = parser.getgroup("kvparity", "kvparity: an engine against PyTorch, case by case")
    group.addoption("--kvparity", metavar="BUNDLE", help="Bundle whose cases become tests.")
    group.addoption(
        "--kvparity-runner",
        metavar="MODULE:NAME",
        default="ort",
        help="Class or function that takes a Bundle and gives a Session; or a runner of kvparity (default: ort).",
    )
    group.addoption(
        "--kvparity-tol",
        metavar="NUMBER|auto",
        help="Largest difference that passes (default: auto where float64 references are recorded, else 1e-4).",
    )
    group.addoption("--kvparity-locate", action="store_true", help="Find where a difference begins.")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add the cases; first, so that ``-k`` selects among them too."""
    bundle = config.getoption("--kvparity")
    if bundle:
        try:
            items.extend(BundleCases.from_parent(session, name=Path(bundle).name, root=bundle).collect())
        except KvparityError as error:
            raise pytest.UsageError(str(error)) from error


class BundleCases(pytest.Collector):
    """The cases of one bundle, and the one session that they are played on."""

    def __init__(self, *, root: str, **given: Any) -> None:
        super().__init__(**given)
        from kvparity.api import open_bundle
        from kvparity.runners.compare.candidates import candidates

        runner = self.config.getoption("--kvparity-runner")
        self.bundle: Bundle = open_bundle(root)
        self.specs, self._makers = candidates(_made_by(runner, self.config.invocation_params.dir))
        self._session: Session | None = None

    def collect(self) -> Iterator[CaseItem]:
        """One item per case of the bundle."""
        for entry in self.bundle.manifest.cases:
            yield CaseItem.from_parent(self, name=entry.name, entry=entry)

    def open(self, bundle: Bundle, spec: RunnerSpec) -> Session:
        """The shared session; one of its own for another bundle, which ``--kvparity-locate`` makes."""
        from kvparity.runners.isolation.process import open_runner

        make: Callable[[Bundle], Session] | None = self._makers.get(spec.name)
        if bundle is not self.bundle:
            return open_runner(bundle, spec) if make is None else make(bundle)
        if self._session is None:
            self._session = open_runner(bundle, spec) if make is None else make(bundle)
            self.config.add_cleanup(self._session.close)
        return _Shared(self._session)


class CaseItem(pytest.Item):
    """One case, judged at every position and cache row."""

    parent: BundleCases

    def __init__(self, *, entry: CaseEntry, **given: Any) -> None:
        super().__init__(**given)
        self._entry = entry

    def runtest(self) -> None:
        """Play and judge the case."""
        from kvparity.exporter.contract.options import checked
        from kvparity.runners.compare.judge import judge

        if not self.parent.bundle.manifest.is_recorded(self._entry):
            pytest.skip(f"case {self.name} was not recorded; export with --vectors all")
        tol = self.config.getoption("--kvparity-tol")
        limit = tol if tol in (None, "auto") else float(tol)
        given = {"runners": self.parent.specs, "cases": (self.name,), "tol": limit}
        options = checked(JudgeOptions, {**given, "locate": self.config.getoption("--kvparity-locate")})
        report = judge(self.parent.bundle, options, opener=self.parent.open)
        if report.verdict != "match":
            raise _NoMatchError(report)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The first divergence in words, where there is one."""
        error = excinfo.value
        return str(error) if isinstance(error, KvparityError) else super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Where the case is from, and what it is there to catch."""
        return self.parent.bundle.root, None, f"{self.parent.name}: {self.name}"


class _NoMatchError(KvparityError):
    """A case that is no match."""

    def __init__(self, report: Report) -> None:
        from kvparity.runners.report.words import smallest, verdict_sentence

        lines = [verdict_sentence(report), f"{smallest(report.questions[0])}.", *report.questions[0].notes]
        super().__init__("\n".join([*lines, *(found.sentence for found in report.locations)]))


class _Shared:
    """A session that the next case goes on using."""

    def __init__(self, inner: Session) -> None:
        self.info, self.run = inner.info, inner.run
        if hasattr(inner, "begin"):
            self.begin = inner.begin

    def close(self) -> None:
        """Left open."""


def _made_by(name: str, folder: Path) -> Any:
    """What ``MODULE:NAME`` names; the words themselves where they name a runner of ours.

    Raises:
        KvparityError: There is no such module, or nothing of that name in it.
    """
    from kvparity.runners.base import engine_names

    module, colon, attribute = name.partition(":")
    if module in engine_names() or not colon:
        return name
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise KvparityError(f"--kvparity-runner {name}: {error}; expected MODULE:NAME or a runner's name") from error
