"""Finds and reads the Python files and notebooks under a path. Nothing is imported or run."""

from __future__ import annotations

import io
import json
import os
import re
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...core.errors import InputError, first_line, setting
from ...core.reading import regular_file

SKIPPED = {".git", "__pycache__", ".hg", ".svn", ".ipynb_checkpoints", "node_modules"}
SUFFIXES = (".py", ".ipynb")
SHORT = 1_500
"""A shorter file is always parsed, so that its mistakes are told."""
MOST_BYTES = 8 << 20
"""A larger file holds data, not code."""

_LIBRARIES = tuple(
    b"torch jax jnp numpy np. tensorflow tf. paddle mindspore mlx einops .chunk( [:, [..., [:,: th.cat".split()
)


class Unreadable(Exception):
    """A file that is no Python source; the message says why."""


def python_files(paths: Sequence[Path]) -> list[Path]:
    """Every Python file and notebook under the paths, each once, in order.

    Raises:
        InputError: a path does not exist, or is a file of another kind.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if path.is_dir():
            for file in _walk(path):
                found.setdefault(os.path.realpath(file), file)
        elif path.is_file():
            if path.suffix not in SUFFIXES:
                raise InputError(f"{path} is no Python file: give a .py or .ipynb file, or a folder")
            found.setdefault(os.path.realpath(path), path)
        else:
            raise InputError(f"{setting('paths')} {path} does not exist: give Python files or folders")
    return list(found.values())


def _walk(folder: Path) -> Iterator[Path]:
    """The files in a folder and below; each real folder once, so that links in a circle end."""
    seen: set[str] = set()
    for where, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if name not in SKIPPED)
        for name in sorted(files):
            path = Path(where) / name
            if name.endswith(SUFFIXES) and path.is_file():
                yield path


def read(path: Path) -> str | None:
    """The source of a file, or None if it cannot hold guidance of some channels.

    The cells of a notebook are joined. Lines of cells that are no Python, such as ``%matplotlib``, become comments.

    Raises:
        Unreadable: the file cannot be read as Python source.
    """
    try:
        size = regular_file(path, "source code").stat().st_size
        if size > MOST_BYTES:
            raise Unreadable(f"is {size >> 20} MB long")
        raw = path.read_bytes()
    except InputError as error:  # it cannot be opened, or is a file of the system
        raise Unreadable(str(error)) from None
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from None
    short = size < SHORT
    if path.suffix == ".ipynb":
        return _notebook(raw) if short or _may_guide(raw) else None
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
        text = raw.decode(encoding)
    except (SyntaxError, UnicodeDecodeError, LookupError) as error:
        raise Unreadable(first_line(error)) from None
    return text if short or _may_guide(raw) else None


def _may_guide(raw: bytes) -> bool:
    """A quick look at the text, so that most files need not be parsed."""
    return any(name in raw for name in _LIBRARIES)


def _notebook(raw: bytes) -> str:
    try:
        notebook: Any = json.loads(raw)
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        sources = ["".join(cell["source"]) for cell in cells]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Unreadable("is no notebook of a known format") from None
    lines = "\n".join(sources).split("\n")
    return "\n".join(re.sub(r"^(\s*)([%!?].*)", r"\1pass  # \2", line) for line in lines)
