"""Atomic output: a file or folder is the old one or the new one, never a mix, whatever happens while it is written.

A writer writes in a hidden workspace beside its target (``core.workspaces``). When the content is on the disk, one
rename moves it to the target. A folder is exchanged with the old one in one call, and the old one is deleted after
that. Several writers of one target do not disturb each other: the last one wins.

Some filesystems cannot exchange two folders, and Windows cannot. There the old folder is moved into the workspace
first, then the new one takes its place. If the process dies in between, the target is missing until the next writer in
the folder, or ``recover``, moves the old one back.

If the target is a symbolic link, the link is replaced. The file or folder that it points to stays as it is.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import io
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from .workspaces import OTHERS_CAME_BETWEEN, recover, replace_in_two_steps, sweep, workspace_for

__all__ = ["atomic_file", "atomic_folder", "atomic_path", "recover", "sweep", "write_bytes", "write_json"]

_ATTEMPTS = 1000  # how often another writer may come between the look at a target and its replacement
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM)


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A temporary path with the name of ``target``; what is written there becomes ``target`` if the block succeeds.

    If the block fails in any way, Ctrl-C included, the temporary file is deleted and ``target`` stays as it was. The
    permissions of an existing ``target`` are kept. Missing parent folders are made.

    Raises:
        OSError: the file cannot be written, synced or moved to ``target``.
    """
    with workspace_for(target) as workspace, _naming(target):
        temporary = workspace / target.name
        yield temporary
        _sync(temporary)
        _keep_permissions(target, temporary)
        temporary.replace(target)
        _sync(target.parent)


@contextmanager
def atomic_file(target: Path) -> Iterator[IO[bytes]]:
    """A new binary file, open for writing; it becomes ``target`` if the block succeeds. See ``atomic_path``.

    Use it with a library that raises an error of its own when the disk is full, such as ``torch.save``.

    Raises:
        OSError: the file cannot be written. It replaces the library's own error.
    """
    with atomic_path(target) as temporary:
        raw = _RecordingFile(temporary, "xb")
        try:
            with io.BufferedWriter(raw) as file:
                yield file
        except Exception as error:
            if raw.fault is None or isinstance(error, OSError):
                raise
            raise raw.fault from error


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """An empty temporary folder; it becomes ``target`` if the block succeeds.

    An existing ``target`` is then deleted with everything in it. The caller must check that this loses nothing. Its
    permissions are kept. Missing parent folders are made.

    Raises:
        OSError: the folder cannot be written, synced or moved to ``target``, or ``target`` is a file.
    """
    recover(target)
    with workspace_for(target) as workspace:
        temporary = workspace / target.name
        temporary.mkdir()
        yield temporary
        _refuse_file(target)
        _sync_all(temporary)
        _keep_permissions(target, temporary)
        _put_in_place(temporary, target, workspace)
        _sync(target.parent)


def write_bytes(target: Path, data: bytes) -> None:
    """Write a file, atomically."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(data)


def write_json(target: Path, values: Any) -> None:
    """Write plain data as indented JSON, atomically."""
    write_bytes(target, (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())


@contextmanager
def _naming(target: Path) -> Iterator[None]:
    """Have errors of a system call that has no name of a file, such as those of a full disk, name the target."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(target)
        raise


def _refuse_file(target: Path) -> None:
    """Raise NotADirectoryError if the target exists and is no folder."""
    with suppress(FileNotFoundError):
        if not stat.S_ISDIR(target.stat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target))


def _put_in_place(new: Path, target: Path, workspace: Path) -> None:
    """Move a folder to ``target``. An old one ends in the workspace."""
    for attempt in range(_ATTEMPTS):
        try:
            if not os.path.lexists(target):
                new.rename(target)
            elif not _exchange(new, target):
                replace_in_two_steps(new, target, workspace)
            return
        except OSError as error:
            if error.errno not in OTHERS_CAME_BETWEEN or attempt + 1 == _ATTEMPTS or not new.exists():
                raise


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one call. False if the system or the filesystem cannot."""
    call = _exchange_call()
    if call is None:
        return False
    if call(os.fsencode(one), os.fsencode(other)) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


@functools.cache
def _exchange_call() -> Callable[[bytes, bytes], int] | None:
    """The system's call that exchanges two paths, if it has one."""
    if sys.platform not in ("linux", "darwin"):
        return None
    library = ctypes.CDLL(None, use_errno=True)
    try:
        if sys.platform == "darwin":
            swap = library.renamex_np
            swap.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint)
            return lambda one, other: swap(one, other, 2)  # RENAME_SWAP
        exchange = library.renameat2
        exchange.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
        return lambda one, other: exchange(-100, one, -100, other, 2)  # AT_FDCWD twice, RENAME_EXCHANGE
    except AttributeError:  # an older C library
        return None


def _keep_permissions(target: Path, temporary: Path) -> None:
    """Give the new file or folder the permissions of the one that it replaces. Those of a link mean nothing."""
    with suppress(FileNotFoundError):
        mode = target.lstat().st_mode
        if not stat.S_ISLNK(mode):
            temporary.chmod(stat.S_IMODE(mode))


def _sync_all(folder: Path) -> None:
    """Wait until a folder and everything in it is on the disk. What a writer inside could not delete is deleted."""
    sweep(folder)
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            _sync_all(path)
        elif path.is_file() and not path.is_symlink():
            _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":
        return  # Windows cannot open a folder
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not is_folder or error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a few filesystems cannot sync a folder
            raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(descriptor)


class _RecordingFile(io.FileIO):
    """A file that remembers the error of a failed write."""

    fault: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.fault = error
            raise
