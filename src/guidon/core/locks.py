"""Advisory locks on folders: one process, or one thread, works in a folder at a time.

A lock is a ``flock`` on a hidden file in the folder. The kernel releases it when its process ends for any reason, so no
lock outlives its owner. Threads of one process exclude each other too. Between hosts it works if the filesystem
supports ``flock`` (NFS does since version 4). Windows has no ``flock``: there, nothing is locked.
"""

from __future__ import annotations

import errno
import os
import platform
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import InputError
from .warn import warn

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK_NAME = ".guidon.lock"
"""The name of the lock file in a folder. A killed process leaves it behind, unlocked, which is harmless."""

_BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


@contextmanager
def held(folder: Path, what: str) -> Iterator[None]:
    """Hold the folder's lock during the block.

    Args:
        folder: an existing folder.
        what: the work, such as "training". Another process that wants the lock names it in its message.

    Raises:
        InputError: another process or thread holds the lock, or the lock file cannot be written.
    """
    with _hold(folder / LOCK_NAME, what) as owner:
        if owner is not None:
            raise InputError(f"{folder} is in use: {owner}; wait until it ends, stop it, or choose another folder")
        yield


@contextmanager
def try_held(folder: Path, name: str = LOCK_NAME, what: str = "work") -> Iterator[bool]:
    """Hold a lock of the folder during the block if it is free. Yields whether it is held.

    Args:
        folder: an existing folder.
        name: the name of the lock file. Locks of different names are independent. Work that is divided has one for each
            part.
        what: the work, see ``held``.

    Raises:
        InputError: the lock file cannot be written.
    """
    with _hold(folder / name, what) as owner:
        yield owner is None


def flock(descriptor: int, *, wait: bool = False) -> bool | None:
    """Lock an open file exclusively: True if it is locked now, False if someone else holds it, None without locks.

    Closing the descriptor releases the lock. ``wait``: wait for whoever holds it.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        return False if error.errno in _BUSY else None  # anything else: the filesystem has no locks
    return True


def same_file(descriptor: int, path: Path) -> bool:
    """Whether the open file still is the one at ``path``. Links are not followed."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


@contextmanager
def _hold(path: Path, what: str) -> Iterator[str | None]:
    """Lock the file during the block. Yields who holds it instead, or None if we do."""
    try:
        descriptor, locked = _open_locked(path)
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        if locked is False:
            text = os.pread(descriptor, 1000, 0).decode(errors="replace").strip()
            yield text or "another process has locked it"
            return
        if locked is None:
            warn(f"the filesystem of {path.parent} has no locks: work in it from one place only")
        try:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{what} by process {os.getpid()} on {platform.node()} since {_now()}\n".encode())
        except OSError as error:
            raise _unwritable(path, error) from None
        try:
            yield None
        finally:
            # Delete the file while it is locked. Whoever opened it before sees that it is gone, and makes a new one.
            with suppress(OSError):
                path.unlink()
    finally:
        os.close(descriptor)


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"the lock file {path} cannot be written ({error.strerror}): make the folder writable or choose another"
    )


def _open_locked(path: Path) -> tuple[int, bool | None]:
    """Open the file, made if needed, and try to lock it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "it is not a regular file")
            locked = flock(descriptor)
            if not locked or same_file(descriptor, path):
                return descriptor, locked
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its last owner deleted it between our opening and our locking


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %Z")
