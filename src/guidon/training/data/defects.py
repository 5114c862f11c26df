"""What is wrong with files that a user gave to train on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from ...core.errors import InputError
from ...core.reading import printable
from ...core.warn import note

LISTED = 10  # defects that a refusal lists
MEND = "Mend them, or train on the others with data: {unreadable: leave_out}"
DefectKind = Literal[
    "missing", "outside", "unsupported", "undecodable", "too small", "too short", "no caption", "empty caption",
    "no class", "duplicate", "bad row",
]  # fmt: skip


@dataclass(frozen=True)
class Defect:
    """Why a file, or a row of metadata, cannot be used."""

    kind: DefectKind
    file: str
    """The file that cannot be used; for a row that names none, the file of the row."""
    why: str
    """What is wrong and what to do, as the rest of a sentence about the file."""
    row: str = ""
    """Where the file is named, such as "clips/metadata.jsonl, line 3"; empty for a file that no row names."""

    def __str__(self) -> str:
        place = f" ({self.row})" if self.row and self.row != self.file else ""
        return printable(f"{self.file}{place}: {self.why}")


def refuse_or_tell(defects: Sequence[Defect], leave_out: bool, speaks: bool = True) -> None:
    """Refuse files that cannot be used, or say of each that it is left out, if this process ``speaks``.

    Raises:
        InputError: there are such files, and they are not to be left out. The message lists the first of them.
    """
    if not defects:
        return
    if leave_out:
        for line in [*(f"left out: {defect}" for defect in defects), f"{counted(defects)} left out"] if speaks else ():
            note(line)
        return
    listed = "; ".join(f"{number}. {defect}" for number, defect in enumerate(defects[:LISTED], 1))
    more = f"; and {len(defects) - LISTED} more" if len(defects) > LISTED else ""
    raise InputError(f"{counted(defects)} cannot be used: {listed}{more}. {MEND}")


def counted(defects: Iterable[Defect]) -> str:
    """How many there are of each kind: "3 files (2 missing, 1 undecodable)"."""
    kinds = Counter(defect.kind for defect in defects)
    total = sum(kinds.values())
    named = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    return f"{total} file{'s' * (total != 1)} ({named})"
