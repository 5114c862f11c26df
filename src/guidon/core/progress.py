"""Progress of long work: how it is reported, and a bar on stderr that shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

OnStep = Callable[[int, int], None]  # called with the steps done and the steps in all


def part_of(on_step: OnStep | None, before: int, total: int) -> OnStep | None:
    """Reports the steps of a part as steps of the whole, of which ``before`` were done earlier."""
    return on_step and (lambda done, _: on_step(before + done, total))


@contextmanager
def progress(what: str) -> Iterator[OnStep]:
    """A bar on stderr while the block runs, silent where stderr is no terminal; yields the ``OnStep`` that moves it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        line = bar.add_task("", total=None)
        yield lambda done, total: bar.update(line, completed=done, total=total)
