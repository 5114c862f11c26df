"""Batches that are drawn while the steps before them are computed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import torch
from torch.utils.data import DataLoader, Dataset

B = TypeVar("B")


def prefetched(draw: Callable[[int], B], start: int, end: int, workers: int = 0) -> Generator[B, None, None]:
    """``draw(n)`` for n from ``start`` to ``end`` - 1, in this order. Close the generator to end what draws ahead.

    Args:
        draw: draws a batch. An exception of it is raised when its batch would be yielded.
        start, end: the range.
        workers: processes that draw, each up to two batches ahead. They are forked, so a batch must not be on another
            device than the CPU. With 0, one thread draws one batch ahead.
    """
    if start < end:
        yield from _by_processes(draw, range(start, end), workers) if workers else _by_thread(draw, start, end)


def _by_thread(draw: Callable[[int], B], start: int, end: int) -> Iterator[B]:
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(draw, start)
        for step in range(start + 1, end):
            batch, coming = coming.result(), thread.submit(draw, step)
            yield batch
        yield coming.result()


class _Drawn(Dataset[Any]):
    """What ``draw`` makes, or the exception that it raises, so that the message stays one line."""

    def __init__(self, draw: Callable[[int], object]) -> None:
        self.draw = draw

    def __getitem__(self, step: int) -> object:
        try:
            return self.draw(step)
        except Exception as error:
            return error


def _by_processes(draw: Callable[[int], B], steps: range, workers: int) -> Iterator[B]:
    drawn = DataLoader(
        _Drawn(draw),
        batch_size=None,
        sampler=steps,
        num_workers=min(workers, len(steps)),
        collate_fn=_as_it_is,
        multiprocessing_context="fork",
        generator=torch.Generator(),  # it seeds the processes, which draw no other numbers than those of the step
    )
    for batch in drawn:
        if isinstance(batch, Exception):
            raise batch
        yield cast("B", batch)


def _as_it_is(batch: object) -> object:
    return batch
