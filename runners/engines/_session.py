"""What most engines share: load both graphs at once, run them by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kvparity.exporter.contract.bundle import Bundle, GraphEntry
from kvparity.exporter.contract.dtypes import numpy_dtype
from kvparity.exporter.contract.errors import EngineUnavailableError, NotTakenError, PackageError, TraceError, lines_of
from kvparity.exporter.contract.spec import GraphKind, Port
from kvparity.runners.base import Array, RunnerInfo

__all__ = [
    "GraphSession",
    "Load",
    "Run",
    "by_name",
    "empty",
    "first_line",
    "one_of",
    "refuse_layouts",
    "refuse_profiles",
    "refuse_unpacked",
    "run_by_name",
    "threads_of",
]

Run = Callable[[Mapping[str, Array]], dict[str, Array]]
Load = Callable[[Path, GraphEntry], Run]


class GraphSession:
    """Both graphs of a bundle as functions; loaded when the session opens, so that a refusal comes before any case.

    Args:
        bundle: The bundle.
        info: The engine as it will run.
        load: Makes one graph into a function of its inputs.

    Raises:
        EngineUnavailableError: The engine cannot load a graph.
    """

    def __init__(self, bundle: Bundle, info: RunnerInfo, load: Load) -> None:
        self.info = info
        self._graphs: dict[GraphKind, Run] = {}
        for kind, entry in bundle.manifest.graphs.items():
            try:
                self._graphs[kind] = load(bundle.graph_path(kind), entry)
            except EngineUnavailableError:
                raise
            except Exception as error:  # each engine has exceptions of its own
                raise EngineUnavailableError(f"{info.name} cannot load {kind}.onnx: {first_line(error)}") from error

    def run(self, graph: GraphKind, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one graph once."""
        return self._graphs[graph](inputs)

    def close(self) -> None:
        """Drop both graphs."""
        self._graphs.clear()


def first_line(error: BaseException) -> str:
    """The first line of a message that says anything; the type's name where none does."""
    lines = lines_of(error)
    told = [line for line in lines if not line.startswith("Exception from src/")]  # OpenVINO names its own file first
    return (told or lines)[0][:300]


def by_name(entry: GraphEntry, values: list[Array] | tuple[Array, ...]) -> dict[str, Array]:
    """Outputs in graph order, by name.

    Raises:
        TraceError: The engine returned another number of outputs than the graph has.
    """
    names = [port.name for port in entry.spec.outputs]
    if len(names) != len(values):
        raise TraceError(f"the engine returned {len(values)} outputs, the graph has {len(names)}")
    return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}


def run_by_name(session: Any, entry: GraphEntry) -> Run:
    """For engines that took over ONNX Runtime's interface: ``session.run(output names, feeds)``."""
    names = [port.name for port in entry.spec.outputs]

    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        feeds = {port.name: np.ascontiguousarray(inputs[port.name]) for port in entry.spec.inputs}
        return by_name(entry, session.run(names, feeds))

    return run


def empty(port: Port) -> Array:
    """Zeros of a port whose shape is fixed."""
    return np.zeros([int(size) for size in port.shape], numpy_dtype(port.dtype))


def threads_of(options: Mapping[str, str]) -> int:
    """The setting ``threads``; 0, the engine's own choice, where it is not given.

    Raises:
        EngineUnavailableError: It is not a number.
    """
    text = options.get("threads", "0")
    if not text.isdigit():
        raise EngineUnavailableError(f"threads {text!r} is not a number")
    return int(text)


def one_of(name: str, options: Mapping[str, str], key: str, *known: str) -> str:
    """A setting that has a few values; the first where it is not given.

    Raises:
        EngineUnavailableError: It is none of them.
    """
    value = options.get(key, known[0])
    if value not in known:
        raise EngineUnavailableError(f"{name}: {key} {value!r} is unknown; known are {', '.join(known)}")
    return value


def refuse_layouts(name: str, bundle: Bundle, *layouts: str) -> None:
    """Refuse a bundle whose layout the engine cannot take.

    Raises:
        NotTakenError: It is none of ``layouts``.
    """
    if bundle.options.layout not in layouts:
        raise NotTakenError(
            f"{name} takes the {' or '.join(layouts)} layout only, and this bundle's is {bundle.options.layout}; "
            f"export with --layout {layouts[0]}"
        )


def refuse_unpacked(refuse: Callable[[Bundle], None], bundle: Bundle) -> None:
    """Refuse a bundle that does not become a package of the engine's tool.

    Args:
        refuse: The package layout's own refusal.
        bundle: The bundle.

    Raises:
        NotTakenError: In the layout's words.
    """
    try:
        refuse(bundle)
    except PackageError as error:
        raise NotTakenError(str(error)) from error


def refuse_profiles(name: str, bundle: Bundle, *profiles: str) -> None:
    """Refuse a bundle whose operators the engine lacks.

    Raises:
        NotTakenError: Its profile is none of ``profiles``.
    """
    if bundle.options.profile not in profiles:
        raise NotTakenError(
            f"{name} takes the {' or '.join(profiles)} profile only, and this bundle's is {bundle.options.profile}; "
            f"export with --profile {profiles[0]}"
        )
