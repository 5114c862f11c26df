"""Atomic output: a file or folder is the old one or the new one, never between, whatever happens while it is written.

A writer makes a hidden workspace beside its target, a folder with a random name, and writes in it. When the content is
on the disk, one rename moves it to the target. A folder is exchanged with the old one in one call, and the old one is
deleted after that. Several writers of one target do not disturb each other: the last one wins.

A workspace holds a lock file, which its writer locks while it lives. A writer that dies leaves its workspace behind,
and the next writer in the folder deletes it: it is dead if its lock is free. A lock tells nothing on a filesystem
without locks, and little about a writer on another machine. There, a workspace is dead after a day without a change.

Some filesystems cannot exchange two folders, and Windows cannot. There the old folder is moved into the workspace
first, then the new one takes its place. If the process dies in between, the target is missing until the next writer in
the folder, or ``recover``, moves the old one back.

A target that is a symbolic link is replaced itself. What it points to is left alone.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import io
import json
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from .hashing import hash_text
from .locks import LOCK_NAME, flock, same_file

_DAY = 24 * 60 * 60
_ATTEMPTS = 1000  # other writers can come between that often
_OLD = ".guidon.old"  # the folder in a workspace that holds the old target while it is replaced in two steps
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)  # Windows has none
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM)
_OTHERS_CAME_BETWEEN = (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY)


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A temporary path with the name of ``target``; what is written there becomes ``target`` if the block succeeds.

    If the block fails in any way, Ctrl-C included, the temporary file is deleted and ``target`` stays as it was. The
    permissions of an existing ``target`` are kept. Missing parent folders are made.

    Raises:
        OSError: the file cannot be written, synced or moved to ``target``.
    """
    with _workspace(target) as workspace:
        temporary = workspace / target.name
        yield temporary
        _sync(temporary)
        _keep_permissions(target, temporary)
        temporary.replace(target)
        _sync(target.parent)


@contextmanager
def atomic_file(target: Path) -> Iterator[IO[bytes]]:
    """A new binary file, open for writing; it becomes ``target`` if the block succeeds. See ``atomic_path``.

    Give it to a library that turns a full disk into an error of its own.

    Raises:
        OSError: the file cannot be written. It is raised in place of what a library made of it.
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
    with _workspace(target) as workspace:
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


def recover(target: Path) -> None:
    """Bring ``target`` back if it is missing because a writer died while it replaced it in two steps.

    Every writer in the folder does this. A reader needs it only on a filesystem that cannot exchange two folders.
    """
    if os.path.lexists(target) or not target.parent.is_dir():
        return
    hidden = _hidden_in(target.parent)
    found = [path / _OLD / target.name for path in hidden if _WORKSPACE.fullmatch(path.name) and _is_our_folder(path)]
    found += [path for path in hidden if _is_old_of_earlier_version(path, target)]
    for old in sorted(filter(_moved_at, found), key=_moved_at, reverse=True):
        _move_back(old, target)


def sweep(folder: Path) -> None:
    """Delete what dead writers left in a folder, if it exists. Every writer in the folder does this too."""
    for path in _hidden_in(folder) if folder.is_dir() else ():
        if found := _WORKSPACE.fullmatch(path.name):
            with suppress(OSError):
                _sweep_workspace(path, machine=found[1])


# The workspace: made, locked, deleted; swept if its writer is dead.


@contextmanager
def _workspace(target: Path) -> Iterator[Path]:
    """A new hidden folder beside ``target`` that only we can enter. It is locked during the block, and deleted then."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    workspace, lock = _make_workspace(target)
    try:
        yield workspace
    finally:
        # A failure to delete is no failure to write. The next writer in the folder tries again.
        with suppress(OSError):
            _delete_workspace(workspace)
        if lock is not None:
            os.close(lock)


def _make_workspace(target: Path) -> tuple[Path, int | None]:
    """The new folder, and the descriptor that holds its lock; None on a filesystem without locks."""
    while True:
        workspace = target.parent / _workspace_name(target)
        workspace.mkdir(mode=0o700)
        try:
            lock = os.open(workspace / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, 0o600)
        except FileNotFoundError:
            continue  # another writer swept it, because it had no lock file yet
        except BaseException:
            with suppress(OSError):
                workspace.rmdir()
            raise
        if flock(lock, wait=True) is None:
            os.close(lock)  # Windows cannot delete an open file
            return workspace, None
        if same_file(lock, workspace / LOCK_NAME):
            return workspace, lock
        os.close(lock)  # another writer swept it before it was locked


def _workspace_name(target: Path) -> str:
    """``.STEM.TOKEN.tmp.SUFFIX``, where TOKEN is 8 digits for this machine and 12 random ones."""
    stem, suffix = (os.fsdecode(os.fsencode(part)[:100]) for part in (target.stem, target.suffix))  # 255 bytes at most
    return f".{stem}.{_machine()}{secrets.token_hex(6)}.tmp{suffix}"


_WORKSPACE = re.compile(r"\..*\.([0-9a-f]{8})[0-9a-f]{12}\.tmp(?:\.[^.]*)?", re.DOTALL)


@functools.cache
def _machine() -> str:
    """Eight hexadecimal digits that stand for the running kernel, within which locks exclude each other."""
    try:
        name = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        name = platform.node()
    return hash_text(name)[:8]


def _delete_workspace(workspace: Path) -> None:
    """Delete a workspace that is locked by us: its lock file last, so that a part of it is still known as dead."""
    _settle_old(workspace)
    for entry in workspace.iterdir():
        if entry.name != LOCK_NAME:
            _delete(entry)
    (workspace / LOCK_NAME).unlink()
    workspace.rmdir()


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _sweep(target: Path) -> None:
    """Delete what dead writers left in the folder of ``target``, and bring back what they moved away.

    A leftover that cannot be deleted, such as another user's, stays. It disturbs nobody.
    """
    earlier = re.compile(rf"\.{re.escape(target.stem)}\.\d+\.tmp{re.escape(target.suffix)}")
    for path in _hidden_in(target.parent):
        with suppress(OSError):
            if found := _WORKSPACE.fullmatch(path.name):
                _sweep_workspace(path, machine=found[1])
            elif earlier.fullmatch(path.name) or _is_old_of_earlier_version(path, target):
                _delete_if_older_than_a_day(path)


def _hidden_in(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return [Path(entry.path) for entry in entries if entry.name.startswith(".")]


def _is_old_of_earlier_version(path: Path, target: Path) -> bool:
    """Whether ``path`` is an old ``target`` that an earlier version moved away: ``.NAME.PID.old``."""
    return re.fullmatch(rf"\.{re.escape(target.name)}\.\d+\.old", path.name) is not None


def _is_our_folder(path: Path) -> bool:
    """Whether this user made it. Another user may have planted a folder, or a link to one of ours."""
    try:
        found = path.lstat()
    except FileNotFoundError:  # its writer has just ended
        return False
    return stat.S_ISDIR(found.st_mode) and (os.name == "nt" or found.st_uid == os.geteuid())


def _is_older_than_a_day(path: Path) -> bool:
    return time.time() - path.lstat().st_mtime > _DAY


def _delete_if_older_than_a_day(path: Path) -> None:
    if _is_older_than_a_day(path):
        _delete(path)


def _sweep_workspace(workspace: Path, machine: str) -> None:
    """Delete a workspace if its writer is dead."""
    if not _is_our_folder(workspace):
        return
    is_old = _is_older_than_a_day(workspace)
    if machine != _machine() and not is_old:
        return
    try:
        lock = os.open(workspace / LOCK_NAME, os.O_RDWR | _NO_FOLLOW)
    except FileNotFoundError:
        workspace.rmdir()  # it is empty; a writer that was just about to lock it makes another one
        return
    try:
        is_locked = flock(lock)
        if is_locked:
            _delete_workspace(workspace)
    finally:
        os.close(lock)
    if is_locked is None and is_old:
        _delete_workspace(workspace)


# Replacing a folder.


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
                _replace_in_two_steps(new, target, workspace)
            return
        except OSError as error:
            if error.errno not in _OTHERS_CAME_BETWEEN or attempt + 1 == _ATTEMPTS or not new.exists():
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


def _replace_in_two_steps(new: Path, target: Path, workspace: Path) -> None:
    """Move ``target`` into the workspace and ``new`` to its place. If that fails, ``target`` is moved back."""
    old = workspace / _OLD
    old.mkdir(exist_ok=True)
    target.rename(old / target.name)
    try:
        new.rename(target)
    except OSError:
        _settle_old(workspace)
        raise


def _settle_old(workspace: Path) -> None:
    """Move a target back that was moved into the workspace. If its place is taken, let nobody move it back any more."""
    old = workspace / _OLD
    if old.is_dir():
        for path in old.iterdir():
            _move_back(path, workspace.parent / path.name)
        old.rename(workspace / secrets.token_hex(6))


def _move_back(old: Path, target: Path) -> None:
    """Move an old folder back to its place if that is free. A writer that lives moves it away again."""
    if not os.path.lexists(target):
        try:
            old.rename(target)
        except OSError as error:
            if error.errno not in _OTHERS_CAME_BETWEEN:
                raise


# What both need.


def _moved_at(path: Path) -> float:
    """When a path was renamed; 0 if there is none."""
    try:
        return path.lstat().st_ctime
    except OSError:  # absent, or in the workspace of another user
        return 0


def _keep_permissions(target: Path, temporary: Path) -> None:
    """Give the new file or folder the permissions of the one that it replaces. Those of a link mean nothing."""
    with suppress(FileNotFoundError):
        mode = target.lstat().st_mode
        if not stat.S_ISLNK(mode):
            temporary.chmod(stat.S_IMODE(mode))


def _sync_all(folder: Path) -> None:
    """Wait until a folder and everything in it is on the disk."""
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
