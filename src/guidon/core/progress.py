"""Progress of long work: the callback type, and a progress bar on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

OnStep = Callable[[int, int], None]  # called with (steps done, total steps)


def part_of(on_step: OnStep | None, number: int, parts: int) -> OnStep | None:
    """A callback that reports the progress of part ``number`` of several equal parts as progress of the whole."""
    return on_step and (lambda done, total: on_step(number * total + done, parts * total))


@contextmanager
def progress(what: str) -> Iterator[OnStep]:
    """Show a progress bar while the block runs, if stderr is a terminal. Yields the ``OnStep`` that updates it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        line = bar.add_task("", total=None)
        yield lambda done, total: bar.update(line, completed=done, total=total)


@contextmanager
def late_progress(what: str, after: float = 2.0) -> Iterator[OnStep]:
    """Show a line that counts steps, where stderr is a terminal or a notebook's. Yields the ``OnStep`` that updates it.

    It is one plain line that is written again and again, which terminals and notebooks both show.

    Args:
        what: what is done, such as "denoising".
        after: seconds. Work that is done earlier shows nothing.
    """
    stream, begun, shown = sys.stderr, time.monotonic(), 0.0
    if not (stream.isatty() or type(stream).__module__.startswith("ipykernel")):
        yield lambda done, total: None
        return

    def on_step(done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - begun < after or (now - shown < 0.1 and done < total):
            return
        shown, left = now, round((now - begun) * (total - done) / done)
        bar = "#" * round(20 * done / total)
        text = f"{what} [{bar:<20}] {done}/{total}, {left // 60}:{left % 60:02d} left"
        stream.write(f"\r{text:<60}")
        stream.flush()

    try:
        yield on_step
    finally:
        if shown:
            stream.write("\n")
            stream.flush()
