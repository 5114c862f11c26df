"""Slips of the pen: which known word a misspelt one stands for.

Most short English words lie one letter away from a word of the world: "tear" from "teal", "bell" from "ball". So a
short word is guessed only where its own letters are there. No guess is better than a wrong one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

_ONE_EDIT, _TWO_EDITS = 5, 8  # letters of the shorter word, from which on it may differ by one edit, or by two


def intended(word: str, known: Iterable[str]) -> str | None:
    """The known word that a misspelt one stands for, the nearest first; None where none is near enough.

    A slip keeps the first letter, or swaps it with the second: "rde", "cirlce", "bluuue", "sqare", "backgroung".
    """
    single = _single(word)
    near = [
        (edits(word, other), other)
        for other in known
        if word[:1] == other[:1] or word[1::-1] == other[:2]
        if _is_slip(word, other) or single == _single(other)
    ]
    return min(near)[1] if near else None


def _is_slip(word: str, other: str) -> bool:
    shorter = min(len(word), len(other))
    allowed = 2 if shorter >= _TWO_EDITS else 1 if shorter >= _ONE_EDIT else 0
    return edits(word, other) <= allowed or (len(word) == len(other) and sorted(word) == sorted(other))


def _single(word: str) -> str:
    """A word with every letter that is written twice or more in a row written once."""
    return "".join(letter for letter, _ in itertools.groupby(word))


def edits(first: str, second: str) -> int:
    """How many letters must be added, left out, replaced or swapped with the next to make one word the other.

    Optimal string alignment. Words whose lengths differ by more than two give that difference.
    """
    if abs(len(first) - len(second)) > 2:
        return abs(len(first) - len(second))
    before: list[int] = []
    row = list(range(len(second) + 1))
    for i, letter in enumerate(first, 1):
        before, last, row = row, before, [i]
        for j, other in enumerate(second, 1):
            best = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == second[j - 2] and first[i - 2] == other:
                best = min(best, last[j - 2] + 1)
            row.append(best)
    return row[-1]
