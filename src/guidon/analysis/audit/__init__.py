"""Finds channel-sliced classifier-free guidance in Python source, by its syntax tree.

No code is run and nothing is imported. ``source`` finds and reads files, ``flow`` follows values through functions,
``tensors`` knows tensor functions, ``algebra`` recognises guidance, and ``findings`` says which channels it acts on.
"""

from __future__ import annotations

import ast
import gc
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...core.progress import OnStep
from . import source
from .findings import Finding, findings
from .flow import Flow
from .module import Module
from .outline import worthy_lines

__all__ = ["Audit", "Finding", "audit", "audit_source"]

_DEPTH = 5000
"""Python's recursion limit while source is read: sums of some hundred terms are trees as deep."""


@dataclass(frozen=True)
class Audit:
    """What was found under some paths."""

    findings: tuple[Finding, ...]
    """Places where latent channels are left unguided, or where an argument decides, or where the axis is suspicious."""
    complete: tuple[Finding, ...]
    """Places where every latent channel is guided and only a learned variance is left out."""
    files: int
    """How many files were read."""
    unreadable: tuple[tuple[str, str], ...]
    """Files that could not be parsed, and why."""


def audit(paths: Sequence[Path], on_step: OnStep | None = None) -> Audit:
    """Search Python files, notebooks and folders for guidance that acts on some channels.

    Args:
        paths: files and folders; folders are searched through, without .git, __pycache__ and links in a circle.
        on_step: called after every file.

    Raises:
        InputError: a path does not exist or is no Python file.
    """
    files = source.python_files(paths)
    collects = gc.isenabled()
    gc.disable()  # syntax trees hold no cycles, and looking for some takes half of the time
    try:
        return _audit(files, on_step)
    finally:
        if collects:
            gc.enable()


def _audit(files: Sequence[Path], on_step: OnStep | None) -> Audit:
    found: list[Finding] = []
    unreadable: list[tuple[str, str]] = []
    for number, file in enumerate(files):
        try:
            text = source.read(file)
            if text is not None:
                found += audit_source(text, str(file))
        except source.Unreadable as error:
            unreadable.append((str(file), str(error)))
        if on_step is not None:
            on_step(number + 1, len(files))
    some = tuple(f for f in found if f.level != "all" or f.suspicious)
    return Audit(some, tuple(f for f in found if f not in some), len(files), tuple(unreadable))


def audit_source(text: str, file: str = "<text>") -> list[Finding]:
    """The findings in one text of Python.

    Raises:
        Unreadable: it cannot be parsed.
    """
    lines = worthy_lines(text)
    if not lines and len(text) >= source.SHORT:
        return []
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, _DEPTH))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in strings
            tree = ast.parse(text)
        if not lines:
            return []
        module = Module(tree, text, lines)
        flow = Flow(module)
        flow.read()
        return findings(flow.combinations, module, file)
    except SyntaxError as error:
        where = f"line {error.lineno} " if error.lineno else ""
        raise source.Unreadable(f"{where}cannot be parsed ({error.msg})") from None
    except ValueError as error:
        raise source.Unreadable(f"cannot be parsed ({error})") from None
    except (RecursionError, MemoryError):
        raise source.Unreadable("is nested too deeply") from None
    finally:
        sys.setrecursionlimit(limit)
