"""A session in a process of its own, and if need be in a virtual environment of its own.

An engine may crash, panic, hang or print to stdout: the session then raises :class:`EngineCrashError`, the next call
gets a fresh process, and nobody else notices. The process is ``isolation/worker.py``, or a script in another
language that speaks the frames of :mod:`runners.isolation.wire`.

Where an engine lives, first match: the setting ``python=PATH`` or ``env=NAME`` of the runner, the variable
``KVPARITY_PYTHON_<RUNNER>``, the environment named like the runner, this interpreter. Environments are folders in
``KVPARITY_ENGINES``, as ``make engines`` fills it; where unset, in ``.engines`` of this folder, or beside the project.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import kvparity
from kvparity.exporter.contract import errors
from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.errors import EngineUnavailableError, KvparityError, TraceError
from kvparity.exporter.contract.spec import GraphKind
from kvparity.runners.base import Array, RunnerInfo, RunnerSpec, Session, load_engine
from kvparity.runners.isolation.limits import settings
from kvparity.runners.isolation.plain_folder import plain_folder
from kvparity.runners.isolation.wire import Frame, HungError, encode, read_exactly, read_frame, write_all
from kvparity.start import command

__all__ = [
    "EngineCrashError",
    "IsolatedSession",
    "Launch",
    "describe_isolated",
    "engines_folder",
    "interpreter",
    "limit_of",
    "open_isolated",
    "open_runner",
]

ROOT = Path(kvparity.__file__).resolve().parents[1]
OURS = ("env", "python", "limit", "load_limit", "memory_mb")
IN_PROCESS = ("exact", "ort", "torch_eager", "trace_file")
_OUR_PORTS = ("exact", "torch_eager", "trace_file")  # they read no graph, or translate it themselves
LIMIT = 120.0
LOAD_LIMIT = 1800.0
_HANGS = 2


class EngineCrashError(TraceError):
    """An engine's process died or did not answer in time.

    Attributes:
        hung: It did not answer in time.
    """

    def __init__(self, message: str, *, hung: bool = False) -> None:
        super().__init__(message)
        self.hung = hung


@dataclass(frozen=True)
class Launch:
    """How an engine's process is started.

    Attributes:
        name: Runner name, for messages.
        command: Program and arguments.
        limit: Seconds that a call may take.
        load_limit: Seconds that starting and loading may take; compilers need minutes.
        environment: Variables beside the inherited ones.
        memory_mb: Most address space that it may take; 0 for any.
    """

    name: str
    command: Sequence[str]
    limit: float = LIMIT
    load_limit: float = LOAD_LIMIT
    environment: Mapping[str, str] | None = None
    memory_mb: int = 0


class Process:
    """One engine process and its pipes."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._log = tempfile.TemporaryFile()
        try:
            self._process = subprocess.Popen(
                launch.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=_environment(launch),
                start_new_session=True,
                preexec_fn=partial(_limit_memory, launch.memory_mb) if launch.memory_mb else None,
            )
        except OSError as error:
            self._log.close()
            raise EngineUnavailableError(
                f"{launch.name}: {Path(launch.command[0]).name} cannot be started ({error.strerror})"
            ) from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._input, False)

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def call(self, header: Mapping[str, Any], tensors: Mapping[str, Array] | None = None) -> Frame:
        """Send a frame and wait for its answer.

        Raises:
            KvparityError: What the engine's side raised.
            EngineCrashError: The process died or did not answer in time; it is gone now.
        """
        limit = self._launch.limit if header["op"] == "run" else self._launch.load_limit
        deadline = time.monotonic() + limit
        try:
            write_all(self._input, encode(header, tensors), deadline)
            answer, arrays = read_frame(lambda count: read_exactly(self._output, count, deadline))
        except HungError:
            self.kill()
            raise EngineCrashError(
                f"{self._launch.name} did not answer within {limit:g} s and was stopped; "
                "raise it with the setting limit=SECONDS",
                hung=True,
            ) from None
        except (EOFError, BrokenPipeError, ValueError):
            raise EngineCrashError(f"{self._launch.name} {self._end()}") from None
        if "error" in answer:
            raise _rebuilt(answer["error"])
        return answer, arrays

    def _end(self) -> str:
        """How the process ended, with the last thing it said."""
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            code = 0
        last = self._last_words()
        self.kill()
        if code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        else:
            how = f"ended with code {code}" if code else "closed its pipe or broke the protocol"
        return f"{how}{': ' + last if last else ''}"

    def _last_words(self) -> str:
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(self._log.tell() - 4000, 0))
        lines = [line.strip() for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else ""

    def stop(self) -> None:
        """Ask the process to end, and see to it that it does."""
        if self._process.poll() is None:
            try:
                write_all(self._input, encode({"op": "close"}), time.monotonic() + 1)
                self._process.wait(timeout=5)
            except (HungError, OSError, subprocess.TimeoutExpired):
                pass
        self.kill()

    def kill(self) -> None:
        """End the process and whatever it started; calling it twice is allowed."""
        if not self._log.closed:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout, self._log):
                if stream is not None:
                    stream.close()


def _environment(launch: Launch) -> dict[str, str]:
    """Variables of an engine's process: where modules are searched is for this interpreter, not for another one."""
    ours = {"PYTHONPATH", "PYTHONHOME"} if launch.command[0] != sys.executable else set()
    return {name: value for name, value in os.environ.items() if name not in ours} | dict(launch.environment or {})


def _limit_memory(megabytes: int) -> None:
    """Bound the address space of the process that is being started."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))


def _rebuilt(error: Mapping[str, str]) -> KvparityError:
    """The exception that the other process raised; one that is not ours becomes a TraceError naming its type."""
    kind = getattr(errors, str(error.get("kind")), None)
    if isinstance(kind, type) and issubclass(kind, KvparityError):
        return kind(str(error["message"]))
    return TraceError(f"{error.get('kind')}: {error.get('message')}")


class IsolatedSession:
    """A session whose engine runs in another process; a process that died is replaced at the next call.

    Args:
        bundle: The bundle, which the process opens by its folder; or a graph file, for an engine that takes one.
        launch: How the process is started.
        options: The engine's settings.
        folder: A temporary folder that the bundle lies in and that goes when the session closes.
    """

    def __init__(
        self,
        bundle: Bundle | Path,
        launch: Launch,
        options: Mapping[str, str],
        folder: tempfile.TemporaryDirectory[str] | None = None,
    ) -> None:
        self._launch, self._folder = launch, folder
        place = bundle if isinstance(bundle, Path) else bundle.root
        self._open = {"op": "open", "bundle": str(place.resolve()), "options": dict(options)}
        self._process: Process | None = None
        self._hangs = 0
        self.seconds = self.waited = 0.0
        self.info = RunnerInfo(launch.name, "?")
        self._ready()

    def run(self, graph: GraphKind, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one graph once; ``seconds`` is then what the engine took, ``waited`` grows by what the pipes took."""
        process = self._ready()
        started = time.perf_counter()
        answer, outputs = self._guarded(process, {"op": "run", "graph": graph}, inputs)
        self.seconds = float(answer.get("seconds", 0.0))
        self.waited += time.perf_counter() - started - self.seconds if self.seconds else 0.0
        return outputs

    @property
    def pid(self) -> int | None:
        """The process's number; None where it is not running."""
        return None if self._process is None else self._process.pid

    def _ready(self) -> Process:
        if self._hangs >= _HANGS:
            raise EngineCrashError(f"{self._launch.name} hung {self._hangs} times; it is not started again")
        if self._process is None:
            self._process = Process(self._launch)
            answer, _ = self._guarded(self._process, self._open)
            self.info = replace(info_of(answer), name=self._launch.name)
        return self._process

    def _guarded(
        self, process: Process, header: Mapping[str, Any], tensors: Mapping[str, Array] | None = None
    ) -> Frame:
        try:
            return process.call(header, tensors)
        except EngineCrashError as error:
            self._process = None
            self._hangs += error.hung
            raise
        except KvparityError:
            if header["op"] == "open":
                self.close()
            raise

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.stop()
            self._process = None
        if self._folder is not None:
            self._folder.cleanup()

    def __del__(self) -> None:
        if getattr(self, "_process", None) is not None:
            self.close()


def info_of(answer: Mapping[str, Any]) -> RunnerInfo:
    """The engine's own description, as it came over the pipe."""
    info = answer["info"]
    settings = {str(key): str(value) for key, value in info.get("settings", {}).items()}
    words = (str(info.get(key, "")) for key in ("adapted", "layout"))
    return RunnerInfo(str(info.get("name", "")), str(info["version"]), settings, *words)


def engines_folder() -> Path:
    """Where engine environments are: ``KVPARITY_ENGINES``, ``.engines`` in this folder, or beside the project."""
    here = Path(".engines").absolute()
    return Path(os.environ.get("KVPARITY_ENGINES") or (here if here.is_dir() else ROOT / ".engines")).absolute()


def interpreter(name: str, options: Mapping[str, str]) -> str:
    """The Python that has this runner's engine; see the module's text for the order.

    Raises:
        EngineUnavailableError: A setting names an environment that is not there.
    """
    if "python" in options:
        return options["python"]
    given = os.environ.get(f"KVPARITY_PYTHON_{name.upper()}")
    if given and "env" not in options:
        return given
    python = engines_folder() / options.get("env", name) / "bin" / "python"
    if python.exists():
        return str(python)
    if "env" in options:
        raise EngineUnavailableError(
            f"{name}: environment {options['env']!r} does not exist; make it with make engines"
        )
    return sys.executable


def limit_of(name: str, options: Mapping[str, str], key: str = "limit", usual: float = LIMIT) -> float:
    """The setting ``limit`` (seconds that one call may take) or ``load_limit`` (seconds that loading may take).

    Raises:
        EngineUnavailableError: It is not a number above 0.
    """
    text = options.get(key, str(usual))
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if not 0 < limit < float("inf"):
        raise EngineUnavailableError(f"{name}: {key} {text!r} is not a number of seconds")
    return limit


def launch_of(spec: RunnerSpec) -> Launch:
    """How a runner's process is started.

    Raises:
        EngineUnavailableError: A setting makes no sense.
    """
    python = interpreter(spec.name, spec.options)
    words = command("kvparity.runners.isolation.worker", spec.name, python=python)
    memory = spec.options.get("memory_mb", "0")
    if not memory.isdigit():
        raise EngineUnavailableError(f"{spec.name}: memory_mb {memory!r} is not a number of megabytes")
    limits = limit_of(spec.name, spec.options), limit_of(spec.name, spec.options, "load_limit", LOAD_LIMIT)
    return Launch(spec.name, words, *limits, memory_mb=int(memory))


def open_isolated(
    bundle: Bundle | Path, spec: RunnerSpec, folder: tempfile.TemporaryDirectory[str] | None = None
) -> IsolatedSession:
    """Open a runner in a process of its own; see :class:`IsolatedSession`.

    Raises:
        EngineUnavailableError: The engine is not there, or cannot take the graphs.
        EngineCrashError: It died while loading them.
    """
    options = {key: value for key, value in spec.options.items() if key not in OURS}
    return IsolatedSession(bundle, launch_of(spec), options, folder)


def open_runner(bundle: Bundle, spec: RunnerSpec) -> Session:
    """Open a runner the way it should run: our own references here, every other engine in its own process."""
    engine = load_engine(spec.name)
    own_process = getattr(engine, "OWN_PROCESS", False)
    if spec.name not in ("torch_eager", "trace_file"):  # these run no graph
        kept = {key: value for key, value in settings().items() if key == "limit" or not own_process}
        spec = replace(spec, options={**kept, **spec.options})
    elsewhere = any(key in spec.options for key in OURS)
    if spec.name not in _OUR_PORTS:  # these read links themselves, or no graph
        bundle = plain_folder(bundle)
    if own_process or (spec.name in IN_PROCESS and not elsewhere):
        return _played(bundle, spec, engine.open_session(bundle, spec.options))
    return _played(bundle, spec, open_isolated(bundle, spec))


def _played(bundle: Bundle, spec: RunnerSpec, session: Session) -> Session:
    """A session on somebody else's graphs takes and returns the ports of our contract."""
    if bundle.manifest.foreign is None or spec.name in _OUR_PORTS:
        return session
    from kvparity.runners.adopt.session import AdoptedSession

    return AdoptedSession(bundle, session)


def describe_isolated(spec: RunnerSpec) -> RunnerInfo:
    """Name and version of a runner's engine, asked in the environment where it lives.

    Raises:
        EngineUnavailableError: It is not installed.
    """
    process = Process(replace(launch_of(spec), load_limit=LIMIT))
    try:
        answer, _ = process.call({"op": "describe"})
        return info_of(answer)
    finally:
        process.stop()
