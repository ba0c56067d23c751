"""Where the reference of a case comes from: vectors recorded in the bundle, or PyTorch run now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from types import TracebackType

from kvparity.exporter.contract.bundle import Bundle, CaseEntry
from kvparity.exporter.contract.errors import BundleError
from kvparity.exporter.contract.files import scratch_folder
from kvparity.exporter.contract.vectors import Vectors
from kvparity.runners.base import Session, need
from kvparity.runners.reference.origin import Origin, find_checkpoint

__all__ = ["References", "open_pytorch", "select_cases"]


def select_cases(bundle: Bundle, patterns: tuple[str, ...]) -> tuple[CaseEntry, ...]:
    """Cases of a bundle whose names match any pattern, in the bundle's order; all of them where there is no pattern.

    Raises:
        BundleError: A pattern matches no case, or the bundle has none.
    """
    from fnmatch import fnmatchcase

    entries = bundle.manifest.cases
    known = ", ".join(entry.name for entry in entries) or "none"
    for pattern in patterns:
        if not any(fnmatchcase(entry.name, pattern) for entry in entries):
            raise BundleError(f"{bundle.root}: no case matches {pattern!r}; cases are {known}")
    if not entries:
        raise BundleError(f"{bundle.root}: has no cases, so there is nothing to compare; export again")
    if not patterns:
        return entries
    return tuple(entry for entry in entries if any(fnmatchcase(entry.name, pattern) for pattern in patterns))


class References:
    """Gives the reference vectors of cases; a context manager, because live ones are kept on disk between runners.

    Args:
        bundle: The bundle.
        live: Run PyTorch now, even where vectors were recorded.
        float64: Run PyTorch in float64 as well when live.
        checkpoint: Where the user says that the checkpoint is; None looks for it.
        opener: Opens PyTorch in a dtype given by name; for tests.

    Raises:
        BundleError: ``checkpoint`` is another than the bundle was made from.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        live: bool,
        float64: bool,
        checkpoint: Path | None = None,
        opener: Callable[[Bundle, str], Session] | None = None,
    ) -> None:
        self._bundle, self._live, self._float64 = bundle, live, float64
        self._origin = find_checkpoint(bundle, checkpoint) if live else None
        self._open = opener or (lambda bundle, dtype: open_pytorch(bundle, dtype, self._origin))
        self._folder: TemporaryDirectory[str] | None = None
        self._made: dict[str, Bundle] = {}

    def __enter__(self) -> References:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    @property
    def origin(self) -> Origin | None:
        """Which weights PyTorch runs with where it is run; None where vectors were recorded."""
        return self._origin

    @property
    def sentence(self) -> str:
        """What the reference is, in words."""
        if self._origin is not None:
            return self._origin.sentence
        made = self._bundle.manifest
        if made.checkpoint is None:
            return "what was recorded in the bundle"
        if made.checkpoint.unread:
            return f"recorded with the bundle's own weights, a module at a time ({made.checkpoint.unread})"
        adapter = made.checkpoint.adapter
        merged = f", the adapter {PurePosixPath(adapter).name} merged" if adapter else ""
        return f"recorded from {made.source} as transformers {made.versions.get('transformers', '')} loads it{merged}"

    def has(self, entry: CaseEntry) -> bool:
        """Whether the case can be judged at all."""
        return self._live or self._bundle.manifest.is_recorded(entry)

    def prepare(self, entries: Sequence[CaseEntry]) -> None:
        """Run PyTorch over the sequences of these cases where references are live: each sequence once."""
        if self._live:
            self._record([entry for entry in entries if entry.name not in self._made])

    def vectors(self, entry: CaseEntry) -> Vectors:
        """The reference of a case.

        Raises:
            BundleError: The case was not recorded and is not one of the schedule's.
            EngineUnavailableError: PyTorch is needed and not installed.
            TraceError: The recorded vectors are unreadable.
        """
        return self._live_vectors(entry) if self._live else self._bundle.vectors(entry.name)

    def whole(self, entry: CaseEntry) -> Vectors:
        """The reference of a case with every cache row; PyTorch is run where only a sample of them was recorded."""
        found = self.vectors(entry)
        return found if found.known is None else self._live_vectors(entry)

    def _live_vectors(self, entry: CaseEntry) -> Vectors:
        if entry.name not in self._made:
            self._record([entry])
        return self._made[entry.name].vectors(entry.name)

    def _record(self, entries: Sequence[CaseEntry]) -> None:
        from kvparity.runners.reference.record import record_cases

        if self._folder is None:
            self._folder = scratch_folder("kvparity-live-")
        bundle, folder = self._bundle, Path(self._folder.name) / str(len(self._made))
        folder.mkdir()
        cases = [bundle.case(entry.name) for entry in entries]
        recording = record_cases(
            *(bundle, cases),
            float64=self._float64,
            budget_mb=_UNLIMITED,
            opener=lambda dtype: self._open(bundle, dtype),
            folder=folder,
            strict=False,
        )
        manifest = replace(bundle.manifest, cases=recording.cases, sequences=recording.sequences, head=recording.head)
        made = Bundle(folder, manifest, weights_root=bundle.root)
        self._made.update({entry.name: made for entry in entries})


_UNLIMITED = 1_000_000  # megabytes


def open_pytorch(bundle: Bundle, dtype: str, origin: Origin | None = None) -> Session:
    """A PyTorch session that returns whole caches and all logits, which is what vectors hold.

    Args:
        bundle: The bundle.
        dtype: What it computes in.
        origin: Which weights it runs with; None looks for the checkpoint.

    Raises:
        EngineUnavailableError: torch or transformers is not installed.
    """
    for distribution in ("torch", "transformers"):
        need(distribution, "--live needs it: pip install 'kvparity[export]'")
    from kvparity.runners.engines.torch_eager import reference_session

    return reference_session(bundle, dtype, (origin or find_checkpoint(bundle)).checkpoint)
