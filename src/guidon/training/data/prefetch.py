"""Batches that are drawn while the step before them is computed."""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

B = TypeVar("B")


def prefetched(draw: Callable[[int], B], start: int, end: int) -> Generator[B, None, None]:
    """``draw(n)`` for n from ``start`` to ``end`` - 1. A thread draws one batch ahead of the caller.

    Close the generator to end the thread early.
    """
    if start >= end:
        return
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(draw, start)
        for step in range(start + 1, end):
            batch, coming = coming.result(), thread.submit(draw, step)
            yield batch
        yield coming.result()
