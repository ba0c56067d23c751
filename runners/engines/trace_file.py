"""A saved trace is a runner: arrays that any engine wrote replay here and are judged like a live run.

It is an ``.npz``, a safetensors file, or a folder of ``.npy`` and raw files. Keys are ``<case>/step_<i>/<output>``; a
recording of one case only may leave ``<case>/`` out, and is then taken for the case that ``--case`` selects. Values
from inside the model are ``<case>/step_<i>/probes/<name>``: they are not judged, but locating reads them. A scalar
string ``engine`` names what made it. With a table of names (setting ``names``), keys are an engine's own names of its
values. See docs/trace-format.md.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType, TracebackType

import numpy as np

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.cases import Case, Step
from kvparity.exporter.contract.errors import EngineUnavailableError, TraceError
from kvparity.exporter.contract.files import writing
from kvparity.exporter.contract.spec import GraphKind
from kvparity.runners.base import Array, RunnerInfo, only
from kvparity.runners.engines._names import Named
from kvparity.runners.engines._recordings import open_recording

__all__ = ["INSTALL", "TraceSession", "TraceWriter", "describe", "open_session"]

INSTALL = "nothing to install; give a file with --trace FILE"
TAKES = "every bundle: it replays a file"
FORMAT = "1"
_KEY = re.compile(r"(?:(?P<case>.+)/)?step_(?P<step>\d+)/(?P<name>(?:probes/)?[^/]+)")
_PROBES = "probes/"


def describe() -> RunnerInfo:
    """Version of the trace format."""
    return RunnerInfo("trace_file", FORMAT)


def open_session(bundle: Bundle, options: Mapping[str, str]) -> TraceSession:
    """Open a trace; settings ``file``, ``case`` for a file whose keys do not name one, and ``names`` for foreign names.

    Raises:
        EngineUnavailableError: No file was given.
        TraceError: It is not a readable trace, or does not say which of the bundle's cases it is.
    """
    only(options, "file", "case", "names")
    if "file" not in options:
        raise EngineUnavailableError("trace_file replays a saved trace and needs one: --trace FILE")
    cases = [entry.name for entry in bundle.manifest.cases]
    case = options.get("case", cases[0] if len(cases) == 1 else None)
    return TraceSession(Path(options["file"]), case, bundle=bundle, names=options.get("names"))


class TraceSession:
    """Answers each call with what a trace recorded for it; :meth:`begin` says which case is played.

    Args:
        path: The file or folder.
        case: The case of keys that do not name one.
        bundle: What was played; needed with ``names``.
        names: Table of names that the keys are of; None for the contract's.

    Raises:
        TraceError: The file is unreadable, a key is not of the format, or nothing says which case it is.
    """

    def __init__(
        self, path: Path, case: str | None = None, *, bundle: Bundle | None = None, names: str | None = None
    ) -> None:
        self._path = path
        self._file = open_recording(path)
        self._keys = _index(list(self._file.readers), path.name, self._file.case or case, foreign=names is not None)
        self._case = ""
        self._next = 0
        self._last: dict[str, Array] = {}
        self._elsewhere: set[int] = set()
        self._named: Named | None = None
        if names is not None and bundle is not None:
            self._named = Named(names, bundle, lambda step: self._call(self._case, step))
        settings = {"engine": self._file.engine, "file": path.name, **({"names": names} if names else {})}
        self.info = RunnerInfo("trace_file", FORMAT, settings, layout="dynamic")

    @property
    def cases(self) -> frozenset[str]:
        """Names of the cases that it has a call of."""
        return frozenset(case for case, _ in self._keys)

    def begin(self, case: Case) -> None:
        """Replay this case from its first call.

        Raises:
            TraceError: The trace does not have it, or has more calls of it than the case.
        """
        steps = [step for name, step in self._keys if name == case.name]
        if not steps:
            known = ", ".join(sorted({name for name, _ in self._keys}))
            raise TraceError(f"{self._path.name}: has no case {case.name!r}; it has {known}; select with --case")
        if max(steps) >= len(case.chunks):
            raise TraceError(
                f"{self._path.name}: has step_{max(steps)} of case {case.name}, which has {len(case.chunks)} calls"
            )
        self._case, self._next, self._last = case.name, 0, {}
        self._elsewhere = {step.index for step in case.steps() if step.past or step.reached or not step.start}

    def run(self, graph: GraphKind, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The recorded outputs of the next call; empty where the trace has none, which the gate calls missing.

        Raises:
            TraceError: The recorded inputs differ from the ones given, or a member of the file is unreadable.
        """
        if not self._case:
            raise TraceError(f"{self._path.name}: a trace replays cases; nothing else can be run on it")
        step = self._next
        if step in self._elsewhere:  # what it was fed with is not what the call before returned
            self._last = {}
        self._next += 1
        if self._named is not None:
            return self.outputs(self._case, step, inputs["attention_mask"].shape[1])
        keys = self._keys.get((self._case, step), {})
        found = {name: self._file.read(key) for name, key in keys.items() if not name.startswith(_PROBES)}
        fed = {**inputs, **{name.replace("present.", "past_key_values."): value for name, value in self._last.items()}}
        given = {name for name in found if name in inputs or name.startswith("past_key_values.")}
        for name in sorted(given & fed.keys()):
            if not np.array_equal(found[name], fed[name], equal_nan=found[name].dtype.kind == "f"):
                raise TraceError(f"{self._path.name}: {keys[name]} is not what the case feeds; made for another case?")
        self._last = {name: value for name, value in found.items() if name not in given}
        return self._last

    def outputs(self, case: str, step: int, total: int) -> dict[str, Array]:
        """Outputs that the trace holds of one call; none where there is no such call.

        Args:
            case: The case.
            step: The call, from 0.
            total: Positions up to its end.
        """
        if (case, step) not in self._keys:
            return {}
        self._case = case
        return self._call(case, step) if self._named is None else self._named.outputs(step, total)

    def recorded(self, case: str, step: int, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
        """All that the trace holds of one call: outputs, and values from inside the model by the names of probes.

        Args:
            case: The case.
            step: The call, from 0; there is nothing before it.
            shapes: Of every probe and output of the graph, by name.
        """
        if self._named is None or not self._keys.get((case, step)):
            return self._call(case, step)
        self._case = case
        return self._named.inside(step, shapes)

    def dtypes(self, case: str) -> dict[str, str]:
        """By output of the case's first call: the dtype that it was recorded in."""
        self._case, keys = case, self._keys.get((case, 0), {})
        if self._named is not None:
            return {name: array.dtype.name for name, array in self._named.outputs(0, 0).items()}
        outputs = [name for name in keys if name == "logits" or name.startswith("present.")]
        return {name: self._file.read(keys[name]).dtype.name for name in outputs}

    def _call(self, case: str, step: int) -> dict[str, Array]:
        keys = self._keys.get((case, step), {})
        return {name.removeprefix(_PROBES): self._file.read(key) for name, key in keys.items()}

    def close(self) -> None:
        """Close the file."""
        self._file.closing()


def _index(names: list[str], file: str, case: str | None, *, foreign: bool) -> dict[tuple[str, int], dict[str, str]]:
    """(case, step) -> output -> key; a foreign name that says no step is of the first."""
    keys: dict[tuple[str, int], dict[str, str]] = {}
    for key in names:
        match = _KEY.fullmatch(key) or (_KEY.fullmatch(f"step_0/{key}") if foreign else None)
        if match is None:
            raise TraceError(
                f"{file}: key {key!r} is not of the form <case>/step_<i>/<output> or <case>/step_<i>/probes/<name>"
            )
        name = match["case"] or case
        if name is None:
            raise TraceError(
                f"{file}: key {key!r} does not name its case; select one with --case, or name it in the keys"
            )
        place = (name, int(match["step"]))
        keys.setdefault(place, {})[match["name"]] = key
    if not keys:
        raise TraceError(f"{file}: holds no step; expected keys such as step_0/logits")
    return keys


class TraceWriter:
    """Writes a trace while cases are played; the file appears when the block ends without an error.

    A second process that writes the same file waits.

    Args:
        path: The ``.npz`` to make.
        engine: What makes it.

    Raises:
        TraceError: The file cannot be written.
    """

    def __init__(self, path: Path, engine: str) -> None:
        self._path = path.resolve()
        if self._path.is_dir():
            raise TraceError(f"{path}: is a folder; name a file")
        self._open = ExitStack()
        try:
            self._temporary = self._open.enter_context(writing(self._path))
            self._archive = zipfile.ZipFile(self._temporary, "w", zipfile.ZIP_STORED)
        except OSError as error:
            self._open.close()
            raise TraceError(f"{path}: cannot be written ({error.strerror}); choose another place") from error
        self._write("engine", np.asarray(engine))

    def add(
        self, case: str, step: Step, outputs: Mapping[str, Array], probes: Mapping[str, Array] = MappingProxyType({})
    ) -> None:
        """Write one call's outputs, and what else is known from inside of it."""
        for name, value in [*outputs.items(), *((_PROBES + name, value) for name, value in probes.items())]:
            self._write(f"{case}/step_{step.index}/{name}", np.asarray(value))

    def _write(self, key: str, value: Array) -> None:
        entry = zipfile.ZipInfo(f"{key}.npy", date_time=(1980, 1, 1, 0, 0, 0))
        with self._archive.open(entry, "w", force_zip64=True) as stream:
            np.lib.format.write_array(stream, np.asarray(value, order="C"), allow_pickle=False)

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._open:
            self._archive.close()
            if kind is None:
                self._temporary.replace(self._path)
