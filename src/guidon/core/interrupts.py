"""Ctrl-C that waits for the end of a piece of work."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def finished_first(note: Callable[[], None]) -> Iterator[None]:
    """Let the first Ctrl-C wait for the end of the block; a second one stops at once.

    Only where Ctrl-C would raise ``KeyboardInterrupt``: in the main thread, under Python's own handler. Elsewhere the
    block runs as it is.

    Args:
        note: tells the user what is waited for. It runs in a thread of its own, beside the block.

    Raises:
        KeyboardInterrupt: Ctrl-C came, and the block is done; or it came twice.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    told: list[threading.Thread] = []

    def wait(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # for the second one
        told.append(threading.Thread(target=note))  # printing here could break into a print of the block
        told[0].start()

    signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for thread in told:
            thread.join()
    if told:
        raise KeyboardInterrupt
