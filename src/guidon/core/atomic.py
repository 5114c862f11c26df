"""Atomic output: write under a temporary name in the same folder, sync, then rename."""

from __future__ import annotations

import glob
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def _temporary(target: Path) -> Path:
    """A hidden name beside the target with this process's id in it. Leftovers of ended processes are deleted."""
    for leftover in target.parent.glob(f".{glob.escape(target.stem)}.*.tmp{glob.escape(target.suffix)}"):
        owner = leftover.name.removeprefix(f".{target.stem}.").removesuffix(f".tmp{target.suffix}")
        if owner.isdecimal() and not _alive(int(owner)):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
    return target.with_name(f".{target.stem}.{os.getpid()}.tmp{target.suffix}")


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A temporary path in ``target``'s folder, with its suffix; it becomes ``target`` if the block succeeds.

    If the block fails in any way, Ctrl-C included, the temporary file is deleted and ``target`` stays as it was.
    """
    temporary = _temporary(target)
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(target)
        _sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """An empty temporary folder beside ``target``; it becomes ``target`` if the block succeeds.

    An existing ``target`` is then deleted with everything in it. The caller must check that this loses nothing.
    """
    temporary = _temporary(target)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        yield temporary
        for path in temporary.iterdir():
            _sync(path)
        _sync(temporary)
        if target.is_dir():  # a folder cannot be renamed over a full one: move the old one away first
            old = target.with_name(f".{target.name}.{os.getpid()}.old")
            try:
                target.rename(old)
                temporary.rename(target)
            except BaseException:
                if old.exists() and not target.exists():
                    old.rename(target)
                raise
            shutil.rmtree(old)
        else:
            temporary.rename(target)
        _sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(target: Path, values: Any) -> None:
    """Write plain data as indented JSON, atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
