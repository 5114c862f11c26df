"""Warnings of a thread, for its own browser: what of a prompt the model does not follow."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_LOCAL = threading.local()
_LOCK = threading.Lock()


@contextmanager
def heard() -> Iterator[list[str]]:
    """Collect the warnings of this thread in the block, each once. Those of other threads go where they went before."""
    lines: list[str] = []
    with _LOCK, warnings.catch_warnings():
        before: Any = warnings.showwarning
        warnings.simplefilter("always", UserWarning)

        def show(message: Any, category: Any, *where: Any, **more: Any) -> None:
            if getattr(_LOCAL, "lines", None) is not None:
                if str(message) not in _LOCAL.lines:
                    _LOCAL.lines.append(str(message))
            else:
                before(message, category, *where, **more)

        warnings.showwarning = show
        _LOCAL.lines = lines
        try:
            yield lines
        finally:
            _LOCAL.lines = None
