"""A stage of a pipeline: a large part that is loaded when it is first used, and may be dropped after use."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from threading import Lock, Thread
from typing import Generic, ParamSpec, TypeVar

import torch

H = ParamSpec("H")
P = TypeVar("P")


class Stage(Generic[H, P]):
    """One part of a model. Several threads may use it.

    It holds one part at a time. If it is asked for with other arguments, the old part is dropped.

    Args:
        make: makes the part. Its arguments are options, such as the dtype of a network.
        keep: whether the part stays after use.
    """

    def __init__(self, make: Callable[H, P], keep: bool) -> None:
        self.make, self.keep = make, keep
        self._lock = Lock()
        self._held: tuple[object, Future[P]] | None = None  # the arguments, and the part or the error in making it

    def prepare_in_background(self, *how: H.args, **named: H.kwargs) -> None:
        """Start to make the part in another thread. ``in_use`` waits for it, and raises its error if it failed."""
        part, begun = self._find(how, named)
        if not begun:
            Thread(target=_fill, args=(part, partial(self.make, *how, **named))).start()

    @contextmanager
    def in_use(self, *how: H.args, **named: H.kwargs) -> Iterator[P]:
        """Yield the part that ``make(*how)`` returns. If making it failed, the next use tries again."""
        part, begun = self._find(how, named)
        if not begun:
            _fill(part, partial(self.make, *how, **named))
        try:
            part.result()
        except BaseException:
            self._drop(part)
            raise
        try:
            yield part.result()
        finally:
            if not self.keep:
                self._drop(part)
                del part
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()

    def _find(self, how: tuple[object, ...], named: dict[str, object]) -> tuple[Future[P], bool]:
        """The part for these arguments, and whether someone has begun to make it. If not, the caller makes it."""
        arguments = how, tuple(sorted(named.items()))
        with self._lock:
            if self._held is not None and self._held[0] == arguments:
                return self._held[1], True
            part: Future[P] = Future()
            self._held = arguments, part
            return part, False

    def _drop(self, part: Future[P]) -> None:
        with self._lock:
            if self._held is not None and self._held[1] is part:
                self._held = None


def _fill(part: Future[P], make: Callable[[], P]) -> None:
    try:
        part.set_result(make())
    except BaseException as error:
        part.set_exception(error)
