"""Progress of long work: the callback type, a bar on a terminal, and now and then a line where stderr is none."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

from .ranks import own_rank

OnStep = Callable[[int, int], None]  # called with (steps done, total steps)

QUICK = 2.0  # seconds: work that takes less says nothing
BETWEEN = 30.0  # seconds between two lines, at the least
SHARE = 0.1  # of the work between two lines, at the least
SILENT = 600.0  # seconds after which a line comes, however little was done
_LOOK = 0.25  # seconds between two looks at what is done
_REDRAW = 0.1  # seconds between two drawings of a bar


def part_of(on_step: OnStep | None, number: int, parts: int) -> OnStep | None:
    """A callback that reports the progress of part ``number`` of several equal parts as progress of the whole."""
    return on_step and (lambda done, total: on_step(number * total + done, parts * total))


def progress(what: str, unit: str = "", then: str = "") -> AbstractContextManager[OnStep]:
    """Show the progress of the block on stderr: a bar on a terminal, lines elsewhere. Yields the ``OnStep`` to call.

    Lines come only if the block takes over ``QUICK`` seconds: one that says what is done, one with an estimate as soon
    as there is one, then one each ``BETWEEN`` seconds or ``SHARE`` of the work, whichever is later, and one at the end.

    Args:
        what: what is done and how much of it: "denoising 4 clips".
        unit: what ``OnStep`` counts, in the plural; empty to show per cent.
        then: work of the block that ``OnStep`` does not count, nor an estimate: "decoding".

    Under torchrun the first rank alone shows it.
    """
    return _bar(what, then) if sys.stderr.isatty() and not own_rank() else lines(what, unit, then)


def late_progress(what: str, after: float = QUICK, then: str = "") -> AbstractContextManager[OnStep]:
    """Show the progress of a call in Python on stderr: a bar in a terminal or a notebook, nothing elsewhere.

    Args:
        what: what is done, such as "denoising".
        after: seconds. Work that is done earlier shows nothing.
        then: as in ``progress``.
    """
    notebook = type(sys.stderr).__module__.startswith("ipykernel")
    shown = (notebook or sys.stderr.isatty()) and not own_rank()
    return _bar(what, then, after) if shown else nullcontext(lambda done, total: None)


@contextmanager
def _bar(what: str, then: str, after: float = 0.0) -> Iterator[OnStep]:
    """A bar on one plain line that is written again and again, which terminals and notebooks both show."""
    work, width, shown = _Work(what, "", then), shutil.get_terminal_size().columns - 1, 0.0

    def draw() -> None:
        nonlocal shown
        shown = time.monotonic()
        # the cursor goes back to the start of the line, so that a message takes the bar's place
        _write(f"\r{work.bar():<{width}.{width}}\r")

    def on_step(done: int, total: int) -> None:
        work.note(done, total)
        now = time.monotonic()
        if now - work.begun >= after and (now - shown >= _REDRAW or done == total):
            draw()

    if not after:
        draw()
    try:
        yield on_step
        work.finished = True
    finally:
        if shown:
            draw()
            _write("\n")


@contextmanager
def lines(what: str, unit: str = "", then: str = "") -> Iterator[OnStep]:
    """The lines of ``progress``, also on a terminal. Under torchrun the first rank alone prints them."""
    work = _Work(what, unit, then)
    watch = threading.Thread(target=work.watch, daemon=True)
    if not own_rank():
        watch.start()
    try:
        yield work.note
        work.finished = True
    finally:
        work.ended.set()
        if watch.ident is not None:
            watch.join()


class _Work:
    """What is done of some work, in words."""

    def __init__(self, what: str, unit: str, then: str) -> None:
        self.what, self.unit, self.then = what, unit, then
        self.begun, self.done, self.total = time.monotonic(), 0, 0
        self.first = 0.0, 0  # when a number was first reported, and the number: work that goes on begins above 0
        self.ended, self.finished = threading.Event(), False

    def note(self, done: int, total: int) -> None:
        if total != self.total:
            self.first = time.monotonic(), done
        self.done, self.total = done, total

    def watch(self) -> None:
        """Print lines until the work ends. A thread does this, because a single step can take long."""
        last, told = 0.0, 0.0  # when the last line came, and the share of the work that it named
        while not self.ended.wait(_LOOK):
            now, left = time.monotonic() - self.begun, self._left()
            if now < QUICK:
                continue
            since, share = now - last, 0.0 if left is None else self.done / self.total
            # without an estimate, lines become rare
            regular = since >= BETWEEN and share - told >= SHARE if share else since >= max(BETWEEN, last)
            if not last or (share and not told) or regular or since >= SILENT:
                _say(f"{self.what}: {self._state(now, left)}")
                last, told = now, share
        if last and self.finished:
            _say(f"{self.what}: done in {as_time(time.monotonic() - self.begun)}")

    def _left(self) -> float | None:
        """Seconds to the end; None where nothing tells."""
        when, before = self.first
        if self.done <= before:
            return None
        return (self.total - self.done) * (time.monotonic() - when) / (self.done - before)

    def _state(self, now: float, left: float | None) -> str:
        if left is None:
            return "begun" if now < 2 * QUICK else f"{as_time(now)} so far"
        done = f"{self.done} of {self.total} {self.unit}" if self.unit else f"{100 * self.done / self.total:.0f}%"
        return f"{done}, " + (f"about {self._rest(left)}" if left else self.then or "finishing")

    def _rest(self, left: float) -> str:
        return f"{as_time(left)} left" + (f", then {self.then}" if self.then else "")

    def bar(self) -> str:
        """A bar, the numbers and the time that is left, as far as they are known."""
        if not self.total:
            return self.what
        drawn, left = "#" * round(20 * self.done / self.total), self._left()
        rest = self._rest(left) if left else self.then if self.done == self.total and not self.finished else ""
        return f"{self.what} [{drawn:<20}] {self.done}/{self.total}" + (f", {rest}" if rest else "")


def as_time(seconds: float) -> str:
    """A duration for people: "40 s", "12 min", "3 h 5 min"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def _say(line: str) -> None:
    _write(f"guidon: {line}\n")


def _write(text: str) -> None:
    with suppress(OSError, ValueError):  # stderr is full or closed: that must not end the work
        print(text, end="", file=sys.stderr, flush=True)
