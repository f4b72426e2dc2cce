"""The lock of a run directory: one process at a time writes into it, and the lock of a dead process does not count.

``lock`` is locked by the operating system. Where the file system has no such locks (some network folders), ``lock.held``
names the process and the computer that works there.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from scorebayes.errors import ConfigError

if TYPE_CHECKING:
    from filelock import BaseFileLock

LOCK, HELD = "lock", "lock.held"
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_held: dict[tuple[int, int, Path], tuple[int, int]] = {}
"""What this process has locked, by process, thread and folder, with the folder's identity."""


@contextmanager
def locked(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock of a folder; who holds it already goes on.

    patience: seconds to wait for another process. ConfigError if it still works there, if something else lies in the place
    of the lock, or if the folder is no longer the one that was locked.
    """
    key = _key(folder)
    if key in _held:
        require_same(folder)
        yield
        return
    lock = _acquired(folder, patience)
    try:
        _held[key] = _identity(folder)
        yield
    finally:
        _held.pop(key, None)
        lock.release()


def require_same(folder: Path) -> None:
    """ConfigError if a folder that this process has locked was moved, removed or replaced since."""
    known = _held.get(_key(folder))
    if known is not None and (not folder.is_dir() or _identity(folder) != known):
        raise ConfigError(
            f"{folder}: the run directory was moved, removed or replaced while this process was working in it.",
            "Move it back to where it was, and resume.",
        )


def _key(folder: Path) -> tuple[int, int, Path]:
    return os.getpid(), threading.get_ident(), Path(os.path.realpath(folder))


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _acquired(folder: Path, patience: float) -> BaseFileLock:
    import filelock  # only where something is written

    path = folder / LOCK
    _require_ordinary(path)
    try:
        return _waited_for(filelock.FileLock(path), patience)
    except filelock.Timeout:
        held = path
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise ConfigError(
                f"{path}: the run directory cannot be locked ({error.strerror or error}).",
                "It has to be a folder that can be written.",
            ) from error
        held = folder / HELD
        _require_ordinary(held)
        try:
            return _waited_for(filelock.SoftFileLock(held), patience)
        except filelock.Timeout:
            pass
        except OSError as error:
            raise ConfigError(
                f"{held}: the run directory cannot be locked ({error.strerror or error}).",
                "It has to be a folder that can be written.",
            ) from error
    stale = f" If it died on another computer, delete {held}." if held.name == HELD else ""
    raise ConfigError(
        f"{folder}: another process is working in this run directory.",
        f"Wait until it is done, or stop it.{stale}",
    )


def _waited_for(lock: BaseFileLock, patience: float) -> BaseFileLock:
    lock.acquire(timeout=patience, poll_interval=0.02)
    return lock


def _require_ordinary(path: Path) -> None:
    """A link would lead out of the directory, and a pipe would wait for ever."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode):
        raise ConfigError(
            f"{path}: expected an ordinary file there, and no link, folder or pipe.", "Remove it."
        )
