"""What a runner is: a module that says whether its engine is here, and opens a session on a bundle."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.cases import Case
from kvparity.exporter.contract.errors import EngineUnavailableError
from kvparity.exporter.contract.spec import GraphKind
from kvparity.runners.spec import RunnerSpec

__all__ = [
    "Array",
    "CaseSession",
    "Engine",
    "RunnerInfo",
    "RunnerSpec",
    "Session",
    "engine_names",
    "load_engine",
    "parse_runner",
]

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class RunnerInfo:
    """An engine as it will run here.

    Attributes:
        name: Runner name, the engine's file name in ``runners/engines``.
        version: Version of the engine.
        settings: Settings that can change numbers or speed: precision hints, threads, providers.
        adapted: What had to be changed in the graphs for this engine; empty where they run as they are.
        layout: Layout that the session takes, where it is not the bundle's: PyTorch takes ``dynamic`` always.
    """

    name: str
    version: str
    settings: Mapping[str, str] = field(default_factory=dict)
    adapted: str = ""
    layout: str = ""


class Session(Protocol):
    """Both graphs of one bundle, loaded in one engine."""

    info: RunnerInfo

    def run(self, graph: GraphKind, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one graph once.

        Args:
            graph: Which graph.
            inputs: Every input of the graph by name, in the dtypes and shapes of its ports.

        Returns:
            Every output by name.
        """
        ...

    def close(self) -> None:
        """Free the engine's resources; calling it twice is allowed."""
        ...


@runtime_checkable
class CaseSession(Session, Protocol):
    """A recording: it must know which case is played, and answers with what it holds, whatever it is fed."""

    def begin(self, case: Case) -> None:
        """Called before the first call of a case."""
        ...

    def dtypes(self, case: str) -> Mapping[str, str]:
        """By output of a case's first call: the dtype that it was recorded in."""
        ...


class Engine(Protocol):
    """A module in ``runners/engines``.

    Attributes:
        INSTALL: How to install it.
        TAKES: Which graphs it was measured to take.
    """

    INSTALL: str
    TAKES: str

    def describe(self) -> RunnerInfo:
        """Name and version of the engine, without loading a model.

        Raises:
            EngineUnavailableError: It is not installed; the message ends with the install line.
        """
        ...

    def open_session(self, bundle: Bundle, options: Mapping[str, str]) -> Session:
        """Load the bundle's graphs.

        Args:
            bundle: An opened bundle.
            options: Settings from the command line, ``--runner name:key=value,…``.

        Raises:
            EngineUnavailableError: It is not installed, or cannot take these graphs; the message says why.
        """
        ...


class GraphEngine(Protocol):
    """An engine that takes a graph file without a bundle as well."""

    def open_graph(self, path: Path, options: Mapping[str, str]) -> Session:
        """Load one graph; the session runs it whatever graph is named."""
        ...


def parse_runner(text: str) -> RunnerSpec:
    """Parse ``name`` or ``name:key=value,key=value``.

    Raises:
        EngineUnavailableError: No runner has that name, or a setting has no value.
    """
    name, _, settings = text.partition(":")
    if name not in engine_names():
        raise EngineUnavailableError(f"runner {name!r}: unknown; known are {', '.join(engine_names())}")
    options: dict[str, str] = {}
    for setting in filter(None, settings.split(",")):
        key, equals, value = setting.partition("=")
        if not equals:
            raise EngineUnavailableError(f"runner {text!r}: setting {setting!r} has no value; write key=value")
        if key in options:
            raise EngineUnavailableError(f"runner {text!r}: setting {key!r} is given twice")
        options[key] = value
    return RunnerSpec(name, options)


def engine_names() -> tuple[str, ...]:
    """Names of all runners, installed or not, without importing any of them."""
    package = importlib.import_module("kvparity.runners.engines")
    return tuple(sorted(module.name for module in pkgutil.iter_modules(package.__path__) if module.name[0] != "_"))


def load_engine(name: str) -> Engine:
    """Import a runner's module; the engine itself may still be absent.

    Raises:
        EngineUnavailableError: No runner has that name.
    """
    if name not in engine_names():
        raise EngineUnavailableError(f"runner {name!r}: unknown; known are {', '.join(engine_names())}")
    return cast(Engine, importlib.import_module(f"kvparity.runners.engines.{name}"))


def need(distribution: str, install: str) -> str:
    """Version of an installed distribution.

    Raises:
        EngineUnavailableError: It is not installed.
    """
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        raise EngineUnavailableError(f"{distribution} is not installed; {install}") from None


def only(options: Mapping[str, str], *known: str) -> None:
    """Refuse settings that a runner does not have.

    Raises:
        EngineUnavailableError: Names the first unknown setting and the known ones.
    """
    for key in options:
        if key not in known:
            raise EngineUnavailableError(f"setting {key!r} is unknown here; known are {', '.join(known) or 'none'}")
