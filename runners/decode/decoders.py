"""One conversation on an engine: tokens in, logits of the last one out; the cache stays inside."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.cases import Step
from kvparity.exporter.contract.errors import TraceError
from kvparity.exporter.contract.spec import DECODE, PREFILL, GraphKind
from kvparity.runners.base import Array, RunnerSpec, Session
from kvparity.runners.decode.play import open_player
from kvparity.runners.isolation.plain_folder import plain_folder
from kvparity.runners.isolation.process import OURS, open_runner

__all__ = ["Decoder", "PlayedDecoder", "open_decoder"]

Ids = npt.NDArray[np.int64]


class Decoder(Protocol):
    """A conversation of one row."""

    def reset(self) -> None:
        """Forget everything."""
        ...

    def feed(self, ids: Ids) -> npt.NDArray[np.float32]:
        """Append tokens.

        Args:
            ids: (sequence,) int64, at least one.

        Returns:
            Logits after the last token, (vocab,); valid until the next call.
        """
        ...

    def feed_all(self, ids: Ids) -> npt.NDArray[np.float32]:
        """:meth:`feed` with the logits of all tokens, (sequence, vocab); of graphs that return them."""
        ...

    def back(self, count: int) -> int:
        """Take back the newest tokens.

        Args:
            count: At least one, at most those of the last call.

        Returns:
            How many tokens of that call before them are lost too and have to be fed again: caches that cannot be cut
            go back to what they were before it.
        """
        ...

    def close(self) -> None:
        """Free the engine."""
        ...


class PlayedDecoder:
    """Any engine's session, through the player of its layout."""

    def __init__(self, bundle: Bundle, session: Session) -> None:
        self._bundle, self._session = bundle, session
        self._first: GraphKind = PREFILL if PREFILL in bundle.manifest.graphs else DECODE
        self.reset()

    def reset(self) -> None:
        """Start a new conversation."""
        self._player = open_player(self._bundle, self._session)
        self._total = self._index = self._peak = 0
        self._caches: dict[str, Array] = {}
        self._before: tuple[int, int, dict[str, Array]] = (0, 0, {})

    def feed(self, ids: Ids) -> npt.NDArray[np.float32]:
        """Append tokens; see :class:`Decoder`."""
        return self.feed_all(ids)[-1]

    def feed_all(self, ids: Ids) -> npt.NDArray[np.float32]:
        """Append tokens; see :class:`Decoder`."""
        start, total = self._total, self._total + len(ids)
        inputs: dict[str, Array] = {
            "input_ids": ids[None, :],
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(start, total, dtype=np.int64)[None, :],
        }
        step = Step(self._index, DECODE if start else self._first, start, total, self._peak)
        outputs = self._player.run(self._session, step, inputs)
        self._before = start, self._peak, self._caches
        self._caches = {
            name.replace("present", "past_key_values"): array for name, array in outputs.items() if name != "logits"
        }
        self._total, self._index, self._peak = total, self._index + 1, step.peak
        return np.asarray(outputs["logits"][0], np.float32)

    def back(self, count: int) -> int:
        """Take back the newest tokens; see :class:`Decoder`."""
        total, (start, peak, caches) = self._total, self._before
        if self._bundle.options.reaches(self._bundle.model, total - count, self._peak):
            self._total -= count
            return 0
        if start:
            self._player.restore(start, caches)
        self._total, self._peak, self._caches = start, peak, caches
        return total - start - count

    @property
    def waited(self) -> float:
        """Seconds so far that pipes to an engine's process took, which are not the engine's."""
        return float(getattr(self._session, "waited", 0.0))

    @property
    def pid(self) -> int | None:
        """The engine's process; None where it is this one."""
        return getattr(self._session, "pid", None)

    def close(self) -> None:
        """Close the session."""
        self._session.close()


def open_decoder(bundle: Bundle, runner: RunnerSpec) -> Decoder:
    """The fastest way that a runner has to continue one conversation; engines run where ``compare`` runs them.

    Raises:
        EngineUnavailableError: The engine is absent or can't take the bundle.
        TraceError: The layout can't be played.
    """
    bundle = plain_folder(bundle)
    here = runner.name == "ort" and not any(key in runner.options for key in OURS)
    if here and bundle.options.layout == "dynamic" and bundle.options.profile != "bare":
        from kvparity.runners.engines._ort_decoder import OrtDecoder

        return OrtDecoder(bundle, runner.options)
    if here and bundle.options.layout == "shared":
        from kvparity.runners.engines._ort_shared import OrtSharedDecoder

        return OrtSharedDecoder(bundle, runner.options)
    session = open_runner(bundle, runner)
    try:
        return PlayedDecoder(bundle, session)
    except TraceError:
        session.close()
        raise
