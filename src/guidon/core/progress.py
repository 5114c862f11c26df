"""Progress of long work: the callback type, and a progress bar on stderr."""

from __future__ import annotations

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
