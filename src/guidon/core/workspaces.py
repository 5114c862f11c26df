"""Workspaces: hidden folders in which a writer prepares what it will move to its target.

A workspace stands beside its target and has a random name. It holds a lock file, which its writer locks as long as it
lives. A writer that dies leaves its workspace behind. The next writer in the folder deletes a workspace whose lock is
free, because its writer is dead.

A lock says nothing on a filesystem without locks, and little about a writer on another machine. There, a workspace
counts as dead after a day without a change.

A workspace may also hold the old target while that is replaced in two steps (``replace_in_two_steps``). Whoever deletes
the workspace moves the old target back if its place is free.
"""

from __future__ import annotations

import errno
import functools
import os
import platform
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .hashing import hash_text
from .locks import LOCK_NAME, flock, same_file

OTHERS_CAME_BETWEEN = (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY)
"""The errors of a rename whose source or target another writer has just moved."""

_DAY = 24 * 60 * 60
_OLD = ".guidon.old"  # the folder in a workspace that holds the old target while it is replaced in two steps
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)  # Windows has none
# The name of a workspace, ".STEM.TOKEN.tmp.SUFFIX". TOKEN is 8 hexadecimal digits of the machine and 12 random ones.
_WORKSPACE = re.compile(r"\..*\.([0-9a-f]{8})[0-9a-f]{12}\.tmp(?:\.[^.]*)?", re.DOTALL)


@contextmanager
def workspace_for(target: Path) -> Iterator[Path]:
    """A new hidden folder beside ``target`` that only this user can enter: locked during the block, then deleted."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep_beside(target)
    workspace, lock = _make_workspace(target)
    try:
        yield workspace
    finally:
        # The writing succeeded even if this fails. The next writer in the folder tries again.
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
    """A new random name; see ``_WORKSPACE``."""
    stem, suffix = (os.fsdecode(os.fsencode(part)[:100]) for part in (target.stem, target.suffix))  # 255 bytes at most
    return f".{stem}.{_machine()}{secrets.token_hex(6)}.tmp{suffix}"


@functools.cache
def _machine() -> str:
    """Eight hexadecimal digits for the running kernel. A lock excludes other processes of the same kernel."""
    try:
        name = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        name = platform.node()
    return hash_text(name)[:8]


def _delete_workspace(workspace: Path) -> None:
    """Delete a workspace, its lock file last: if we die before that, the free lock tells the next sweep to go on."""
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


def sweep(folder: Path) -> None:
    """Delete the workspaces of dead writers in a folder, if it exists. Every writer in the folder does this too."""
    for path in _hidden_in(folder) if folder.is_dir() else ():
        if found := _WORKSPACE.fullmatch(path.name):
            with suppress(OSError):
                _sweep_workspace(path, machine=found[1])


def _sweep_beside(target: Path) -> None:
    """``sweep`` the folder of ``target``. Also delete what earlier versions left of ``target``, after a day.

    A leftover that cannot be deleted, such as another user's, stays. It does no harm.
    """
    earlier = re.compile(rf"\.{re.escape(target.stem)}\.\d+\.tmp{re.escape(target.suffix)}")
    for path in _hidden_in(target.parent):
        with suppress(OSError):
            if found := _WORKSPACE.fullmatch(path.name):
                _sweep_workspace(path, machine=found[1])
            elif earlier.fullmatch(path.name) or _is_old_of_earlier_version(path, target):
                _delete_if_older_than_a_day(path)


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


def _hidden_in(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return [Path(entry.path) for entry in entries if entry.name.startswith(".")]


def replace_in_two_steps(new: Path, target: Path, workspace: Path) -> None:
    """Move ``target`` into the workspace and ``new`` to its place. If that fails, ``target`` is moved back."""
    old = workspace / _OLD
    old.mkdir(exist_ok=True)
    target.rename(old / target.name)
    try:
        new.rename(target)
    except OSError:
        _settle_old(workspace)
        raise


def recover(target: Path) -> None:
    """Move the old ``target`` back to its place if a writer died while it replaced it in two steps.

    Every writer in the folder does this. A reader needs it only on a filesystem that cannot exchange two folders.
    """
    if os.path.lexists(target) or not target.parent.is_dir():
        return
    hidden = _hidden_in(target.parent)
    found = [path / _OLD / target.name for path in hidden if _WORKSPACE.fullmatch(path.name) and _is_our_folder(path)]
    found += [path for path in hidden if _is_old_of_earlier_version(path, target)]
    for old in sorted(filter(_moved_at, found), key=_moved_at, reverse=True):
        _move_back(old, target)


def _settle_old(workspace: Path) -> None:
    """Move the old target in a workspace, if any, back to its place. If that is taken, hide it from ``recover``."""
    old = workspace / _OLD
    if old.is_dir():
        for path in old.iterdir():
            _move_back(path, workspace.parent / path.name)
        old.rename(workspace / secrets.token_hex(6))


def _move_back(old: Path, target: Path) -> None:
    """Move an old target back to its place if that is free. If its writer is alive, the writer moves it away again."""
    if not os.path.lexists(target):
        try:
            old.rename(target)
        except OSError as error:
            if error.errno not in OTHERS_CAME_BETWEEN:
                raise


def _moved_at(path: Path) -> float:
    """The time of a path's last rename; 0 if there is no such path."""
    try:
        return path.lstat().st_ctime
    except OSError:  # absent, or in the workspace of another user
        return 0


def _is_old_of_earlier_version(path: Path, target: Path) -> bool:
    """Whether ``path`` is an old ``target`` that an earlier version moved away: ``.NAME.PID.old``."""
    return re.fullmatch(rf"\.{re.escape(target.name)}\.\d+\.old", path.name) is not None
