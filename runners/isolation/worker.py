"""Engine process: runs one engine for one session, at the other end of ``isolation/process.py``.

Frames come on stdin and leave on what was stdout; file descriptor 1 then points at stderr, because engines print.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.errors import KvparityError
from kvparity.runners.base import Array, Engine, GraphEngine, RunnerInfo, Session, load_engine
from kvparity.runners.isolation.wire import encode, requests, write_all

__all__ = ["main"]


def main(name: str) -> int:
    """Serve one engine until the pipe closes or says so."""
    answers = os.dup(1)
    os.dup2(2, 1)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    state = _State(name)
    for header, tensors in requests(0):
        if header["op"] == "close":
            state.close()
            return 0
        try:
            answer, outputs = state.answer(header, tensors)
        except Exception as error:  # an engine may raise anything, and all of it is reported
            answer, outputs = {"error": {"kind": type(error).__name__, "message": _message(error)}}, {}
        write_all(answers, encode(answer, outputs))
    return 0


class _State:
    """The engine's module, and its session once one is open."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._engine: Engine | None = None
        self._session: Session | None = None

    def answer(
        self, header: Mapping[str, Any], tensors: Mapping[str, Array]
    ) -> tuple[dict[str, Any], dict[str, Array]]:
        """Do what a frame asks."""
        if self._engine is None:
            self._engine = load_engine(self._name)
        if header["op"] == "describe":
            return {"info": _info(self._engine.describe())}, {}
        if header["op"] == "open":
            place, options = Path(header["bundle"]), header["options"]
            if place.is_file():
                self._session = cast(GraphEngine, self._engine).open_graph(place, options)
            else:
                self._session = self._engine.open_session(Bundle.open(place, allow_modified=True), options)
            return {"info": _info(self._session.info)}, {}
        assert self._session is not None
        started = time.perf_counter()
        outputs = self._session.run(header["graph"], tensors)
        return {"seconds": time.perf_counter() - started}, outputs

    def close(self) -> None:
        """Close the session, if one is open."""
        if self._session is not None:
            self._session.close()


def _info(info: RunnerInfo) -> dict[str, Any]:
    return {**asdict(info), "settings": dict(info.settings)}


def _message(error: Exception) -> str:
    if isinstance(error, KvparityError):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:500] if lines else ""


def _end_with_parent(parent: int) -> None:
    """An engine that hangs must not outlive the one who asked."""
    while os.getppid() == parent:
        time.sleep(2)
    os._exit(1)
