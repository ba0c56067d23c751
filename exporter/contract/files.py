"""Folders and files written whole or not at all, by one process at a time; large files copied without reading them.

Writers of one target take turns: each holds a lock beside the target (``.NAME.lock``, gone when it ends) and writes
into a temporary name of its own (``.NAME.XXXXXXXX.tmp``). The system drops the lock of a process that was killed, so
that whoever has the lock knows that every temporary name beside the target is a leftover, and removes it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from kvparity.exporter.contract.errors import BundleError

__all__ = [
    "bring_back",
    "copy_file",
    "link_file",
    "locked",
    "new_folder",
    "scratch_folder",
    "swap",
    "sync",
    "write_whole",
    "writing",
]

_FICLONE = 0x40049409  # linux/fs.h
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
_ALIVE = ".alive"  # locked while the owner of a scratch folder lives


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def locked(target: Path, waiting: Callable[[str], None] = _say) -> Iterator[bool]:
    """Hold the lock of a target, waiting for another process that has it; a kill releases it.

    Args:
        target: What is going to be written.
        waiting: Takes one line if there is something to wait for.

    Yields:
        Whether there is a lock: some network file systems have none, and writers then only have names of their own.

    Raises:
        OSError: The folder of ``target`` cannot be written.
    """
    path = target.with_name(f".{target.name}.lock")
    descriptor, held = _acquire(path, target, waiting)
    try:
        yield held
    finally:
        if held:  # before the lock is released, so that nobody else's is removed
            path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: Path, target: Path, waiting: Callable[[str], None]) -> tuple[int, bool]:
    """An open lock file, and whether it is locked; again where its last holder removed it in between."""
    import fcntl

    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting(f"waiting for another process that is writing {target}")
                waiting = lambda line: None  # noqa: E731
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError:  # a file system without locks
                path.unlink(missing_ok=True)
                return descriptor, False
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor, True
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _remove_leftovers(target: Path) -> None:
    """Remove what killed writers of ``target`` left; the caller has its lock."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.tmp")
    for path in target.parent.iterdir():
        if pattern.fullmatch(path.name):
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def writing(target: Path) -> Iterator[Path]:
    """Hold a target's lock and yield a temporary name beside it, which is this writer's own and gone at the end.

    Args:
        target: A file or folder; its parent exists.

    Raises:
        OSError: The parent cannot be written.
    """
    with locked(target) as held:
        if held:
            _bring_back(target)
            _remove_leftovers(target)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        try:
            yield temporary
        finally:
            _remove(temporary)


@contextmanager
def new_folder(target: Path, marker: str, what: str = "a bundle") -> Iterator[Path]:
    """Yield a temporary sibling folder that becomes ``target`` when the block ends without an error.

    An earlier ``target`` is replaced only then, in one step; after an error or a kill it is untouched. A second writer
    of the same target waits until the first one has ended. What a killed run left goes with the next one.

    Args:
        target: The folder, or a link to it.
        marker: A file that shows that an earlier folder may be replaced.
        what: What a folder with that file is, for messages.

    Raises:
        BundleError: ``target`` exists and is neither empty nor such a folder, or its parent cannot be written.
    """
    target = target.resolve()
    _refuse_others(target, marker, what)  # before there is anything to wait for
    with ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = stack.enter_context(writing(target))
            temporary.mkdir()
        except OSError as error:
            reason = f"{target.parent}: cannot be written ({error.strerror}); choose another folder"
            raise BundleError(reason) from error
        _refuse_others(target, marker, what)
        yield temporary
        sync(temporary)
        try:
            swap(temporary, target)
        except OSError as error:  # such as a mount point
            raise BundleError(f"{target}: cannot be replaced ({error.strerror}); choose a folder in it") from error


def _refuse_others(target: Path, marker: str, what: str) -> None:
    if target.exists() and not (target.is_dir() and ((target / marker).exists() or not any(target.iterdir()))):
        raise BundleError(f"{target}: exists and is not {what}; choose another folder with -o")


def write_whole(path: Path, text: str) -> None:
    """Write a text file; whoever reads it meanwhile, or after a kill, sees the earlier one or this one, whole.

    Raises:
        OSError: It cannot be written.
    """
    path = path.resolve()
    if path.exists() and not (path.is_file() and os.access(path.parent, os.W_OK)):  # such as /dev/stdout
        path.write_text(text, encoding="utf-8", newline="\n")
        return
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        temporary.replace(path)


def scratch_folder(prefix: str, parent: Path | None = None) -> tempfile.TemporaryDirectory[str]:
    """A temporary folder that ends with its process; those of killed processes go when the next one is made."""
    import fcntl

    for path in (parent or Path(tempfile.gettempdir())).glob(f"{prefix}*"):
        with suppress(OSError):
            descriptor = os.open(path / _ALIVE, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)
    folder = tempfile.TemporaryDirectory(prefix=prefix, dir=parent)
    descriptor = os.open(Path(folder.name) / _ALIVE, os.O_RDWR | os.O_CREAT, 0o600)
    with suppress(OSError):  # open, and so locked, until this process ends
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return folder


def sync(folder: Path, *parts: Path) -> None:
    """Have everything in a folder, or these parts of it, on the disk."""
    found = [path for part in parts or (folder,) if part.exists() for path in (part, *part.rglob("*"))]
    for path in [*found, folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def swap(new: Path, target: Path) -> None:
    """Make ``new`` become ``target``; an earlier target takes the name of ``new``, or is gone.

    Linux exchanges two names in one step. Where that cannot be had, the earlier target is ``.NAME.old`` for a moment,
    and :func:`bring_back` finds it there after a kill.
    """
    if not target.exists():
        new.rename(target)
        return
    if _exchange(new, target):
        return
    old = _old(target)
    target.rename(old)
    try:
        new.rename(target)
    except OSError:
        old.rename(target)
        raise
    _remove(old)


def _exchange(left: Path, right: Path) -> bool:
    """Whether two names were exchanged in one step."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(left), _AT_FDCWD, os.fsencode(right), _RENAME_EXCHANGE) == 0:
        return True
    if ctypes.get_errno() in (errno.EINVAL, errno.ENOSYS, errno.EXDEV):
        return False
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(right))


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def bring_back(target: Path) -> None:
    """Undo a replacement that was killed between its two steps: for readers, who find nothing where a folder was."""
    target = target.resolve()
    if target.name and not target.exists() and _old(target).exists():
        with suppress(OSError), locked(target):
            _bring_back(target)


def _bring_back(target: Path) -> None:
    """The same for whoever has the lock; what is left of a replacement that was killed after its two steps goes."""
    old = _old(target)
    if target.exists():
        _remove(old)
    elif old.exists():
        old.rename(target)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file: its blocks are cloned where the disk can (Btrfs, XFS, bcachefs), else the system copies them.

    Raises:
        OSError: ``source`` cannot be read or ``target`` not be written; it is gone then.
    """
    try:
        import fcntl

        with source.open("rb") as reader, target.open("wb") as writer:
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
    except (ImportError, OSError):  # no Linux, or a file system that cannot (ext4, tmpfs)
        try:
            shutil.copyfile(source, target)
        except OSError:
            target.unlink(missing_ok=True)
            raise


def link_file(source: Path, target: Path) -> None:
    """The same file under a second name, for folders that go again; a copy where the disk has no links."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        copy_file(source, target)
