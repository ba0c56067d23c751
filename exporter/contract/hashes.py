"""sha256 of large files, remembered for as long as nothing about a file has changed.

A file's hash is kept in the user's cache folder together with its size, its modification and status-change times, its
inode and device. All of them must be what they were, and the times must have lain in the past when the file was hashed,
or the file is hashed again: whatever writes to a file moves its status-change time, which nobody can set. Every file
has an entry of its own, written whole, so that two writers never mix.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

__all__ = ["LARGE", "cache_folder", "digest", "started"]

LARGE = 32 << 20  # bytes from which a hash is worth remembering
_SETTLED = 2_000_000_000  # nanoseconds: a file that changed more recently may change again within one clock tick


def cache_folder() -> Path:
    """Where hashes are kept: ``kvparity/sha256`` in ``XDG_CACHE_HOME``, or in ``.cache`` of the user's folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvparity" / "sha256"


def digest(path: Path) -> str:
    """The sha256 of a file in hex; a remembered one where the file is as it was when that was computed.

    Raises:
        OSError: The file cannot be read.
    """
    before = _state(path)
    entry = cache_folder() / hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:40]
    if path.stat().st_size >= LARGE:
        with suppress(OSError, ValueError):
            known, found = entry.read_text("ascii").split("\n")[:2]
            if known == before and len(found) == 64:
                return found
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    status = path.stat()
    settled = time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED
    if status.st_size >= LARGE and settled and _state(path) == before:
        _remember(entry, f"{before}\n{found}\n")
    return found


def _state(path: Path) -> str:
    status = path.stat()
    parts = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)
    return " ".join(map(str, parts))


def _remember(entry: Path, text: str) -> None:
    """Write an entry whole; a cache that cannot be written is none."""
    made = entry.with_name(f"{entry.name}.{secrets.token_hex(4)}")
    with suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        try:
            made.write_text(text, "ascii")
            made.replace(entry)
        finally:
            made.unlink(missing_ok=True)


def started(work: Sequence[Callable[[], None]]) -> list[Future[None]]:
    """Calls that run in threads from now on: hashing lets go of Python's lock."""
    pool = ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1))
    futures = [pool.submit(call) for call in work]
    pool.shutdown(wait=False)
    return futures
