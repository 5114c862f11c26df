"""How work grows with its size, by the lines of code that it runs: no clock, and the same on every machine."""

import gc
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import guidon

OURS = str(Path(guidon.__file__).parent)
LINEAR = 2.2
"""If work is linear, doubling it twice adds lines in the ratio 2; if it is quadratic, in the ratio 4."""


def lines_of(work: Callable[[], object]) -> int:
    """How many lines of Guidon, and of its page's template, ``work`` runs. Each turn of a comprehension counts."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        if not frame.f_code.co_filename.startswith((OURS, "<template>")):
            return None
        count += event == "line"
        return trace

    gc.collect()  # what other tests left must not be finalised, which would be counted, meanwhile
    before, collects = sys.gettrace(), gc.isenabled()
    gc.disable()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
        if collects:
            gc.enable()
    return count


def growth(works: Sequence[Callable[[], object]]) -> float:
    """The ratio of the lines that the second doubling adds to those of the first, for work of sizes 1, 2 and 4."""
    one, two, four = map(lines_of, works)
    return (four - two) / (two - one)
