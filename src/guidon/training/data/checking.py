"""Checks a user's files, and decides which clips are cut out of them. Everything that is wrong is named."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from ...core.errors import InputError
from ...core.hashing import hash_text
from ...core.progress import as_time, progress
from ...media.streaming import Look, frames_at, look, looks_like_media, refuse_missing_libraries
from ..recipe.data import Data, Size, Wanted
from .defects import Defect, counted
from .seen import Seen, SeenFiles
from .sources import Given, Listing, list_files

THREADS = 8  # files that are looked at together, at the most
HELD = -1  # the number of the folder that is held out
MOST_CLASSES = 100_000  # a larger number of a class is a mistake, and would ask for as many rows in a table


class Bucket(NamedTuple):
    """Clips of one size and length, from which a batch is drawn."""

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.frames} x {self.height} x {self.width}"


@dataclass(frozen=True, eq=False)
class Clip:
    """A clip that is cut out of a file."""

    given: Given
    sha256: str
    """The hash of the file."""
    found: Look
    """What is known of the file, without the times of its frames that are not in the clip."""
    bucket: Bucket
    ticks: tuple[int, ...]
    """The frames, as ``media.streaming.frames_at`` takes them."""
    fps: float
    """Frames per second of the clip; 0 for a picture."""
    crop: str
    """As ``Data.crop``."""

    @property
    def key(self) -> str:
        """A hash of what its pixels depend on."""
        return hash_text(f"{self.sha256} {self.bucket} {self.crop} {self.ticks}")[:32]


@dataclass(frozen=True, eq=False)
class Checked:
    """A user's files after the check."""

    clips: list[Clip]
    """Those to train on, in the order of their keys: neither names nor places of files decide it."""
    held_out: list[Clip]
    """Those of files that are held out, likewise."""
    defects: list[Defect]
    """What cannot be used."""
    notes: list[str]
    """What a user should know, though nothing is wrong."""
    classes: list[str] | None
    """Names of the classes by their numbers; None unless classes are wanted."""

    def without(self, files: set[str], defects: Sequence[Defect]) -> Checked:
        """The same without the clips of some files, by their hash, and with more defects."""
        clips, held = ([clip for clip in part if clip.sha256 not in files] for part in (self.clips, self.held_out))
        return replace(self, clips=clips, held_out=held, defects=[*self.defects, *defects])

    def class_number(self, clip: Clip) -> int:
        """The number of a clip's class."""
        label = str(clip.given.label)
        return self._numbers[label if label in self._numbers else str(int(label))]  # 007 is 7

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.classes or ())}

    @property
    def counts(self) -> Counter[Bucket]:
        """How many clips of each size and length are trained on."""
        return Counter(clip.bucket for clip in self.clips)

    def report(self, batch_size: int) -> list[str]:
        """Lines for people: files, clips of each size and length, time, and what is fewer than a batch."""
        lines = [_summary("to train on", self.clips), _summary("held out", self.held_out)]
        counts, held = self.counts, Counter(clip.bucket for clip in self.held_out)
        for bucket in sorted(counts | held):
            few = f" (fewer than a batch of {batch_size}: repeated in it)" if 0 < counts[bucket] < batch_size else ""
            lines.append(f"  {bucket}: {counts[bucket]} to train on{few}, {held[bucket]} held out")
        if self.classes is not None:
            lines.append(f"{len(self.classes)} classes")
        return lines + ([f"cannot be used: {counted(self.defects)}"] if self.defects else [])


def _summary(what: str, clips: Sequence[Clip]) -> str:
    files = len({clip.sha256 for clip in clips})
    seconds = sum(clip.bucket.frames / clip.fps for clip in clips if clip.fps)
    length = f", {as_time(seconds)}" if seconds else ""
    return f"{what}: {len(clips)} clip{'s' * (len(clips) != 1)} of {files} file{'s' * (files != 1)}{length}"


def check_data(
    data: Data, wanted: Wanted, *, place: Path | None = None, thorough: bool = False, keep: bool = True
) -> Checked:
    """Look at all files of a recipe's data section.

    Args:
        data: the section.
        wanted: what clips are trained with. Files without it cannot be used.
        place: the folder that holds what was found at an earlier check; None to look at all files again.
        thorough: decode all frames of all clips too, which finds damage inside of files.
        keep: write what was found into ``place``, for the next check.

    Raises:
        InputError: a place or a file of metadata cannot be read, or a library is missing. Files that cannot be used are
            no error here: see ``Checked.defects``.
    """
    refuse_missing_libraries()
    listing = Listing()
    for number, folder in enumerate(data.folders):
        list_files(folder, number, listing)
    if isinstance(data.validation, Path):
        list_files(data.validation, HELD, listing)
    defects, notes = listing.defects, listing.notes
    # What is said of each file.
    usable: list[Given] = []
    for given in listing.given:
        if (defect := _unsaid(given, data, wanted)) is not None:
            defects.append(defect)
        else:
            usable.append(given)
    # The files themselves, several at a time. Results come in the order of the files.
    clips: list[Clip] = []
    held: list[Clip] = []
    first: dict[str, Given] = {}
    uneven, slow = 0, 0
    looked_at = _looked_at(usable, data, SeenFiles(place, data), thorough, keep)
    with closing(looked_at) as outcomes:  # Ctrl-C ends its threads
        for given, outcome in outcomes:
            if isinstance(outcome, Defect):
                defects.append(outcome)
                continue
            if (same := first.setdefault(outcome.sha256, given)) is not given:
                where = f" ({same.row})" if same.row else ""
                twice = same.name == given.name
                why = f"it is given twice, first{where}" if twice else f"it has the same content as {same.name}{where}"
                defects.append(given.defect("duplicate", f"{why}: remove one"))
                continue
            uneven += outcome.uneven
            slow += outcome.slow
            (held if given.folder == HELD else clips).extend(_clips_of(given, outcome, data))
    if wanted == "captions" and (several := sum(len(given.captions or ()) > 1 for given in first.values())):
        have = "files have" if several > 1 else "file has"
        notes.append(f"{several} {have} several captions: one of them is drawn each time a clip is seen")
    if uneven:
        notes.append(f"{uneven} videos show some frames longer than others: give fps for clips of an even motion")
    if slow:
        notes.append(f"{slow} videos have fewer than {data.fps:g} frames per second: some of their frames are repeated")
    if not isinstance(data.validation, Path):
        clips, held = _divided(clips, data.validation, notes)
    classes = _class_names([*clips, *held]) if wanted == "classes" else None
    clips, held = (sorted(part, key=lambda clip: clip.key) for part in (clips, held))
    return Checked(clips, held, defects, notes, classes)


def _unsaid(given: Given, data: Data, wanted: Wanted) -> Defect | None:
    """What a file lacks."""
    if given.content.part is None:
        try:
            there = given.content.path.is_file()
            kind = "a folder" if given.content.path.is_dir() else "not there"
        except (OSError, ValueError):
            there, kind = False, "not there"
        if not there:
            if not given.row:
                kind = "a link to nothing"
            what = "put the file there, or remove its row" if given.row else "mend the link, or remove it"
            return given.defect("missing", f"it is {kind}: {what}")
    if wanted == "captions" and given.captions is None and not data.allow_empty:
        place = "in its row" if given.row else f"in {given.content.shown.stem}.txt"
        return given.defect("no caption", f"it has no caption: give one {place}, or say allow_empty: true")
    if wanted == "captions" and given.captions == () and not data.allow_empty:
        return given.defect("empty caption", "its caption is empty: write one, or say allow_empty: true")
    if wanted == "classes" and not given.label:
        return given.defect("no class", "it has no class: give label in its row, or put it in a folder of its class")
    return None


def _looked_at(
    given: Sequence[Given], data: Data, known: SeenFiles, thorough: bool, keep: bool
) -> Generator[tuple[Given, Defect | Seen], None, None]:
    """Each file with what was found in it, or with what is wrong with it."""
    ended = False

    def work(one: Given) -> Defect | Seen:
        if ended:
            raise KeyboardInterrupt
        found = None if thorough else known.find(one.content)
        return found or _look_at(one, data, thorough)

    with (
        progress(f"checking {len(given)} files", "files") as on_step,
        ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as threads,
    ):
        try:
            for done, (one, outcome) in enumerate(zip(given, threads.map(work, given), strict=True), 1):
                if isinstance(outcome, Seen):
                    known.add(one.content, outcome)
                yield one, outcome
                on_step(done, len(given))
        finally:
            ended = True
            if keep:
                known.keep()


def _look_at(given: Given, data: Data, thorough: bool) -> Defect | Seen:
    content = given.content
    try:
        found = look(content)
    except InputError as error:
        why = str(error).removeprefix(f"{content.shown} ")
        known = content.shown.suffix.lower() in (".mp4", ".mov", ".mkv", ".webm", ".avi") or looks_like_media(content)
        if "not in a format" in why or not known:
            return given.defect("unsupported", "it is not in a format that Guidon reads: convert a video to mp4")
        return given.defect("undecodable", why)
    # Its size, its length and its clips.
    size = _size_for(found.height, found.width, data)
    if size is None:
        least = min(data.all_sizes, key=math.prod)
        why = f"its pictures are {found.height}x{found.width}, smaller than {least[0]}x{least[1]}"
        return given.defect("too small", f"{why}: choose a smaller size, or say enlarge: true")
    times = _times(found, data.fps)
    length = next((length for length in data.lengths if length <= len(times)), None)
    if length is None:
        rate = f" at {data.fps:g} frames per second" if data.fps and found.kind != "picture" else ""
        why = f"it has {len(times)} frame{'s' * (len(times) != 1)}{rate}, fewer than {min(data.lengths)}"
        return given.defect("too short", f"{why}: choose fewer frames, or remove it")
    starts = _starts(len(times), length, data.clips_per_video)
    clips = tuple(tuple(map(int, times[start : start + length])) for start in starts)
    try:
        for clip in clips if thorough else ():
            for _ in frames_at(content, found, clip):
                pass
    except InputError as error:
        return given.defect("undecodable", str(error).removeprefix(f"{content.shown} "))
    return Seen(
        sha256=content.sha256(),
        kind=found.kind,
        height=found.height,
        width=found.width,
        first=int(found.ticks[0]),
        tick=found.tick,
        seconds=found.seconds,
        fps=0.0 if found.fps is None else data.fps or found.fps,
        size=size,
        clips=clips,
        uneven=data.fps is None and not found.is_steady,
        slow=data.fps is not None and found.fps is not None and data.fps > 1.01 * found.fps,
    )


def _clips_of(given: Given, seen: Seen, data: Data) -> list[Clip]:
    found = Look(seen.height, seen.width, cast("Any", seen.kind), np.array([seen.first]), seen.tick, seen.seconds)
    return [
        Clip(given, seen.sha256, found, Bucket(len(ticks), *seen.size), ticks, seen.fps, data.crop)
        for ticks in seen.clips
    ]


def _size_for(height: int, width: int, data: Data) -> Size | None:
    """The size of a file's clips: of those that its pictures can fill, the nearest in shape, then the largest."""
    fitting = [size for size in data.all_sizes if data.enlarge or (size[0] <= height and size[1] <= width)]
    if not fitting:
        return None

    def distance(size: Size) -> float:
        return round(abs(math.log(size[0] / size[1] * width / height)), 6)

    return min(fitting, key=lambda size: (distance(size), -math.prod(size), size))


def _times(found: Look, fps: float | None) -> np.ndarray:
    """The frames of a file at a rate, as its ticks: the one that is shown nearest to each time. None for all frames."""
    if fps is None or not found.seconds:
        return found.ticks
    count = max(1, math.floor(found.seconds * fps + 1e-3))
    wanted = found.ticks[0] + np.arange(count) / (fps * found.tick)
    after = np.searchsorted(found.ticks, wanted).clip(1, max(1, found.frames - 1))
    if found.frames == 1:
        return np.repeat(found.ticks, count)
    before, later = found.ticks[after - 1], found.ticks[after]
    return np.where(wanted - before <= later - wanted, before, later)


def _starts(frames: int, length: int, clips: int) -> list[int]:
    """The first frames of clips that are spread evenly. Fewer clips where several would begin with one frame."""
    last = frames - length
    if clips == 1:
        return [last // 2]
    return sorted({round(k * last / (clips - 1)) for k in range(clips)})


def _divided(clips: list[Clip], share: float, notes: list[str]) -> tuple[list[Clip], list[Clip]]:
    """Those to train on, and those of files that are held out: by their hash, so that more files change no other."""
    files = sorted({clip.sha256 for clip in clips})
    held = {sha256 for sha256 in files if int(sha256[:8], 16) < share * 2**32}
    if share and not held and len(files) > 1:
        held = {files[0]}
    if len(held) == len(files):
        held = set(files[: len(files) - 1]) if len(files) > 1 else set()
    if share and not held and files:
        notes.append("there is one file alone: none is held out, and nothing is measured while it trains")
    return [clip for clip in clips if clip.sha256 not in held], [clip for clip in clips if clip.sha256 in held]


def _class_names(clips: Sequence[Clip]) -> list[str]:
    """The classes by their numbers: those that files give, if all give whole numbers; else in order of their names.

    Raises:
        InputError: a number is too large.
    """
    names = sorted({str(clip.given.label) for clip in clips})
    if all(name.isascii() and name.isdecimal() for name in names):
        most = max((int(name) for name in names if len(name) < 10), default=0)
        if most >= MOST_CLASSES or any(len(name) >= 10 for name in names):
            raise InputError(f"the number of a class is {max(names, key=len)}: give at most {MOST_CLASSES - 1}")
        return [str(number) for number in range(most + 1)]
    return names
