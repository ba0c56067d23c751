"""OpenCV's DNN module, the new engine of OpenCV 5. Its Gelu and Tanh are inexact; the portable profile avoids both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kvparity.exporter.contract.bundle import Bundle, GraphEntry
from kvparity.runners.base import Array, RunnerInfo, need, only
from kvparity.runners.engines._session import GraphSession, Run, by_name, one_of, threads_of

__all__ = ["INSTALL", "describe", "open_session"]

INSTALL = "pip install 'kvparity[opencv]'"
TAKES = "the dynamic and static layouts"
_ENGINES = {"new": "ENGINE_NEW", "classic": "ENGINE_CLASSIC", "auto": "ENGINE_AUTO"}


def describe() -> RunnerInfo:
    """Version of OpenCV."""
    return RunnerInfo("opencv", need("opencv-python-headless", INSTALL))


def open_session(bundle: Bundle, options: Mapping[str, str]) -> GraphSession:
    """Load both graphs; settings ``engine`` (new, classic, auto) and ``threads``."""
    only(options, "engine", "threads")
    version = describe().version
    engine, threads = one_of("opencv", options, "engine", *_ENGINES), threads_of(options)
    import cv2

    if threads:
        cv2.setNumThreads(threads)

    def load(path: Path, entry: GraphEntry) -> Run:
        net = cv2.dnn.readNetFromONNX(str(path), getattr(cv2.dnn, _ENGINES[engine]))
        names = [port.name for port in entry.spec.outputs]

        def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
            for port in entry.spec.inputs:
                net.setInput(np.ascontiguousarray(inputs[port.name]), port.name)
            return by_name(entry, [value.copy() for value in net.forward(names)])

        return run

    settings = {"engine": engine, "threads": str(cv2.getNumThreads())}
    return GraphSession(bundle, RunnerInfo("opencv", version, settings), load)
