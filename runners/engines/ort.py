"""ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.errors import EngineUnavailableError, lines_of
from kvparity.exporter.contract.spec import GraphKind
from kvparity.runners.base import Array, RunnerInfo, need, only
from kvparity.runners.engines._session import one_of, threads_of

__all__ = ["INSTALL", "OrtSession", "describe", "element_type", "open_session"]

INSTALL = "pip install onnxruntime"
TAKES = "every layout and profile"
_BFLOAT16 = 16  # TensorProto.BFLOAT16
_OWN = "provider."  # before a setting of the provider itself
_LEVELS = {
    "all": "ORT_ENABLE_ALL",
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
}


def element_type(dtype: np.dtype[Any]) -> Any:
    """A dtype as IO binding takes it: bfloat16, which numpy itself does not have, by its number."""
    return _BFLOAT16 if dtype.name == "bfloat16" else dtype


def describe() -> RunnerInfo:
    """Version of ONNX Runtime."""
    return RunnerInfo("ort", need("onnxruntime", INSTALL))


def open_session(bundle: Bundle, options: Mapping[str, str]) -> OrtSession:
    """Open both graphs.

    Settings: ``threads``, ``level`` (none, basic, extended, all), ``provider`` (cpu, cuda, webgpu or what
    else this build has), ``provider.NAME`` for that provider's own, such as ``provider.device_id=0``, and
    ``memory=low`` to hold one graph at a time: each has its own copy of the weights, laid out for its products.
    """
    given = {key: value for key, value in options.items() if not key.startswith(_OWN)}
    only(given, "threads", "level", "provider", "memory")
    return OrtSession(bundle, describe().version, options)


def _provider(name: str, known: list[str], version: str) -> str:
    """The execution provider of a name in any case, with or without its suffix."""
    short = {item.removesuffix("ExecutionProvider").lower(): item for item in known}
    wanted = name.lower().removesuffix("executionprovider")
    if wanted not in short:
        has = ", ".join(sorted(short))
        raise EngineUnavailableError(
            f"ort: provider {name!r} is not in this build of onnxruntime {version}, which has {has}; "
            "install the build that has it (onnxruntime-gpu for cuda)"
        )
    return short[wanted]


_LARGE = 256 << 20  # bytes of logits from which a call gives its memory back: the arena grows by powers of two


class OrtSession:
    """Both graphs of a bundle in ONNX Runtime; a graph is loaded when it is first called."""

    def __init__(self, bundle: Bundle, version: str, options: Mapping[str, str]) -> None:
        import onnxruntime

        self._bundle, self._runtime = bundle, onnxruntime
        self._settings = onnxruntime.SessionOptions()
        self._settings.log_severity_level = 3
        threads, level = threads_of(options), one_of("ort", options, "level", *_LEVELS)
        self._settings.intra_op_num_threads = threads
        self._settings.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, _LEVELS[level])
        self._provider = _provider(options.get("provider", "cpu"), onnxruntime.get_available_providers(), version)
        self._own = {key.removeprefix(_OWN): value for key, value in options.items() if key.startswith(_OWN)}
        self.low_memory = one_of("ort", options, "memory", "all", "low") == "low"
        self._sessions: dict[GraphKind, Any] = {}
        self._shrink = onnxruntime.RunOptions()
        self._shrink.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        settings = {"provider": self._provider, "level": level, "threads": str(threads or "default")}
        settings |= {f"{_OWN}{key}": value for key, value in self._own.items()}
        self.info = RunnerInfo("ort", version, settings)

    def run(self, graph: GraphKind, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one graph once."""
        session = self._session(graph)
        names = [output.name for output in session.get_outputs()]
        feeds = {item.name: np.ascontiguousarray(inputs[item.name]) for item in session.get_inputs()}
        if self._bundle.options.layout == "shared":
            return _run_in_place(session, feeds, names)
        size = 4 * feeds["input_ids"].size * self._bundle.model.vocab_size if "input_ids" in feeds else 0
        return dict(zip(names, session.run(names, feeds, self._shrink if size > _LARGE else None), strict=True))

    def native(self, graph: GraphKind) -> Any:
        """The ``onnxruntime.InferenceSession`` of a graph, loaded now if it was not."""
        return self._session(graph)

    def _session(self, graph: GraphKind) -> Any:
        if graph not in self._sessions:
            path = str(self._bundle.graph_path(graph))
            if self.low_memory:
                self._sessions.clear()
            try:
                self._sessions[graph] = self._runtime.InferenceSession(
                    path, self._settings, providers=[self._provider], provider_options=[self._own]
                )
            except Exception as error:  # ONNX Runtime's exceptions share no base
                raise EngineUnavailableError(f"ort cannot load {graph}.onnx: {lines_of(error)[0]}") from error
        return self._sessions[graph]

    def close(self) -> None:
        """Drop both sessions."""
        self._sessions.clear()


def _run_in_place(session: Any, feeds: Mapping[str, Array], names: list[str]) -> dict[str, Array]:
    """Run with every present bound to the memory of its past, which is what the shared layout is for.

    Returns:
        Outputs by name; a present is the array that was fed, written.
    """
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_input(name, "cpu", 0, element_type(array.dtype), array.shape, array.ctypes.data)
    for name in names:
        past = feeds.get(name.replace("present.", "past_key_values."))
        if past is None:
            binding.bind_output(name)
        else:
            binding.bind_output(name, "cpu", 0, element_type(past.dtype), past.shape, past.ctypes.data)
    session.run_with_iobinding(binding)
    found: dict[str, Array] = {}
    for output, value in zip(names, binding.get_outputs(), strict=True):
        source = output.replace("present.", "past_key_values.")
        found[output] = feeds[source] if source in feeds else value.numpy()
    return found
