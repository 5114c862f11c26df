"""Looks through a pickle before PyTorch reads it.

PyTorch runs no code of a pickle, but a small one can still ask for years. A tuple may hold another one twice, which
holds a third one twice, and so on: this takes a few bytes and no memory. As the key of a mapping it is hashed, which
visits every path through it.
"""

from __future__ import annotations

import pickletools
from functools import cache
from typing import IO

MOST_STEPS = 2_000_000  # steps of all pickles of a file; a checkpoint of ten thousand tensors has 300,000
MOST_VALUES = 1_000_000  # values in a tuple, those of an inner tuple counted at each use
_MARK = 0  # no value has the size 0
_PUT, _GET = ("PUT", "BINPUT", "LONG_BINPUT"), ("GET", "BINGET", "LONG_BINGET")


def refuse_bombs(file: IO[bytes], pickles: int, most_steps: int = MOST_STEPS) -> None:
    """Refuse pickles of too many steps, or with a tuple that expands to too many values.

    Args:
        file: the pickles, one after the other, from the file's position on.
        pickles: how many there are.
        most_steps: how many steps they may have together.

    Raises:
        ValueError: the pickles are bombs, or are damaged.
    """
    steps = 0
    for _ in range(pickles):
        stack, memo = list[int](), dict[int, int]()  # the size of each value
        for step, argument, _ in pickletools.genops(file):
            steps += 1
            if steps > most_steps:
                raise ValueError(f"its pickle has more than {most_steps:,} steps")
            if step.name in _PUT:
                memo[int(argument)] = stack[-1]  # pyright: ignore[reportArgumentType]
            elif step.name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif step.name in _GET:
                stack.append(memo[int(argument)])  # pyright: ignore[reportArgumentType]
            elif step.name == "MARK":
                stack.append(_MARK)
            else:
                _apply(step, stack)


def _apply(step: pickletools.OpcodeInfo, stack: list[int]) -> None:
    """Take from the stack what a step takes, and put what it puts."""
    to_mark, values, is_tuple, put = _effect(step)
    size = 1
    if to_mark:
        while (taken := stack.pop()) != _MARK:
            size += taken
    for _ in range(values):
        size += stack.pop()
    if not is_tuple:
        size = 1
    if size > MOST_VALUES:
        raise ValueError(f"its pickle holds a tuple of more than {MOST_VALUES:,} values")
    stack.extend([size] * put)


@cache
def _effect(step: pickletools.OpcodeInfo) -> tuple[bool, int, bool, int]:
    """Whether a step takes all values to the last mark; how many more; whether it makes a tuple; what it puts."""
    before = step.stack_before
    to_mark = pickletools.markobject in before
    values = before.index(pickletools.markobject) if to_mark else len(before)
    return to_mark, values, step.name.startswith("TUPLE"), len(step.stack_after)
