"""Ctrl-C that waits for the end of a piece of work, and one that is heard once where it arrives twice."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .ranks import under_torchrun

REPEAT = 3.0
"""Seconds within which a second Ctrl-C under torchrun is the first one, passed on: a terminal sends it to all of its
processes, and torchrun sends it to those that it started, too."""


class _Once:
    """Raises ``KeyboardInterrupt``, but not for a signal that repeats one of the last ``REPEAT`` seconds."""

    def __init__(self) -> None:
        self.heard = -REPEAT

    def is_new(self) -> bool:
        """Note a signal. False if it repeats one."""
        now = time.monotonic()
        if now - self.heard < REPEAT:
            return False
        self.heard = now
        return True

    def __call__(self, number: int, frame: object) -> None:
        if self.is_new():
            raise KeyboardInterrupt


once = _Once()


def hear_once() -> None:
    """Under torchrun, hear a Ctrl-C once that arrives twice. Elsewhere this changes nothing."""
    main = threading.current_thread() is threading.main_thread()
    if main and under_torchrun() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, once)


@contextmanager
def finished_first(note: Callable[[], None]) -> Iterator[None]:
    """Let the first Ctrl-C wait for the end of the block; a second one stops at once.

    Only where Ctrl-C would raise ``KeyboardInterrupt``: in the main thread, under Python's own handler or that of
    ``hear_once``. Elsewhere the block runs as it is.

    Args:
        note: tells the user what is waited for. It runs in a thread of its own, beside the block.

    Raises:
        KeyboardInterrupt: Ctrl-C came, and the block is done; or it came twice.
    """
    ours = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    if not ours or before not in (signal.default_int_handler, once):
        yield
        return
    told: list[threading.Thread] = []

    def wait(number: int, frame: object) -> None:
        if before is once and not once.is_new():
            return
        signal.signal(signal.SIGINT, before)  # for the second one
        told.append(threading.Thread(target=note))  # printing here could break into a print of the block
        told[0].start()

    signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        for thread in told:
            thread.join()
    if told:
        raise KeyboardInterrupt
