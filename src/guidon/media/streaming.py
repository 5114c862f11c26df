"""Chosen frames of videos, decoded one after the other: a long video is never held whole in memory.

A video is first looked at (``look``): its size, and when each of its frames is shown, which needs no decoding but that
of the first frame. Then ``frames_at`` decodes the frames that were chosen. It begins at the last key frame before them.
Pictures and animations (gif, webp), which are small, are decoded whole.

Frames are upright, as the file says how the camera was held.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from ..core.extras import require
from ..core.hashing import hash_stream
from ..core.reading import FRAME_PIXELS, PIXELS, reading, regular_file
from .files import as_rgb, left_turns, need_pillow, open_container, read_animation, square_width

WHAT = "a video or a picture"
ADVICE = "copy it again, or write it anew with ffmpeg"
_PICTURES = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"BM": "BMP"}  # how a file begins -> its format
VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".flv", ".ogv", ".wmv", ".mxf",
    ".3gp", ".gif", ".webp",
)  # fmt: skip
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
_HEADS = (b"GIF8", b"\x1aE\xdf\xa3", b"FLV\x01", b"OggS", *_PICTURES)


@dataclass(frozen=True)
class Content:
    """A file, or the part of an archive that holds one."""

    path: Path
    """The file, or the archive."""
    part: tuple[int, int] | None = None
    """First byte and number of bytes in the archive; None for a whole file."""
    member: str = ""
    """Its name in the archive."""

    @property
    def shown(self) -> Path:
        """What messages call it: its path, behind that of the archive if it is in one."""
        return self.path / self.member

    @contextmanager
    def opened(self) -> Iterator[IO[bytes]]:
        """The bytes, to be read from the start."""
        with self.path.open("rb") as file:
            yield file if self.part is None else _Part(file, *self.part)  # pyright: ignore[reportReturnType]

    def head(self) -> bytes:
        """How it begins: at most 16 bytes."""
        with self.opened() as file:
            return file.read(16)

    def sha256(self) -> str:
        """The hash of the bytes."""
        with self.opened() as file:
            return hash_stream(file)


class _Part(io.RawIOBase):
    """A part of an open file, as a file of its own."""

    def __init__(self, file: IO[bytes], first: int, size: int) -> None:
        self.file, self.first, self.size, self.place = file, first, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self.place = max(0, offset + (0, self.place, self.size)[whence])
        return self.place

    def tell(self) -> int:
        return self.place

    def read(self, size: int = -1, /) -> bytes:
        left = max(0, self.size - self.place)
        self.file.seek(self.first + self.place)
        found = self.file.read(left if size is None or size < 0 else min(size, left))  # pyright: ignore[reportUnnecessaryComparison]
        self.place += len(found)
        return found


@dataclass(frozen=True, eq=False)
class Look:
    """What is known of a video or picture before its frames are decoded."""

    height: int
    """Of the upright picture, in square pixels."""
    width: int
    kind: Literal["picture", "animation", "video", "counted"]
    """How its frames are found. Those of a "counted" video have no times of their own."""
    ticks: np.ndarray
    """When each frame is shown, int64 (frames,), rising, in the video's own unit of time; the frames' numbers in a
    picture, an animation or a "counted" video."""
    tick: float
    """The unit, in seconds."""
    seconds: float
    """How long all frames are shown; 0 for a picture."""

    @property
    def frames(self) -> int:
        """How many frames it has."""
        return len(self.ticks)

    @property
    def fps(self) -> float | None:
        """Frames per second, on average; None for a picture."""
        return self.frames / self.seconds if self.seconds else None

    @property
    def is_steady(self) -> bool:
        """Whether all frames are shown equally long, within half of that time."""
        steps = np.diff(self.ticks)
        return len(steps) < 2 or int(steps.max()) <= 1.5 * int(steps.min())


def looks_like_media(content: Content) -> bool:
    """Whether a file without a known suffix begins as a video or a picture does."""
    try:
        head = content.head()
    except OSError:  # it cannot be read at all
        return False
    return head.startswith(_HEADS) or head[4:8] == b"ftyp" or (head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"WEBP"))


def look(content: Content) -> Look:
    """Size and times of a video or picture, after its first frame was decoded.

    Raises:
        InputError: it cannot be read, ends early, is too large, or needs a library that is not installed.
    """
    regular_file(content.path, WHAT)
    with reading(content.shown, WHAT, ADVICE):
        frames = _still_frames(content)
        if frames is not None:
            kind, fps = ("picture", 1.0) if len(frames[0]) == 1 else ("animation", frames[1])
            count, height, width = frames[0].shape[:3]
            seconds = 0.0 if kind == "picture" else count / fps
            return Look(height, width, kind, np.arange(count), 1 / fps, seconds)
        return _look_at_video(content)


def frames_at(content: Content, found: Look, ticks: Sequence[int]) -> Iterator[np.ndarray]:
    """The frames of these times, uint8 (height, width, 3) each, upright. Their pixels may not be square.

    Args:
        content: the file.
        found: what ``look`` found.
        ticks: some of ``found.ticks``, rising; one may be given several times.

    Raises:
        InputError: a frame cannot be decoded.
    """
    with reading(content.shown, WHAT, ADVICE):
        if found.kind in ("picture", "animation"):
            frames = _still_frames(content)
            if frames is None or max(ticks) >= len(frames[0]):
                raise ValueError("it changed while it was read")
            yield from (frames[0][tick] for tick in ticks)
        elif found.kind == "counted" or ticks[0] <= found.ticks[0]:
            yield from _decoded(content, found, ticks, from_start=True)
        else:
            yield from _decoded(content, found, ticks, from_start=False)


def _still_frames(content: Content) -> tuple[np.ndarray, float] | None:
    """All frames (time, height, width, 3) and their rate, of what Pillow reads; None for a video."""
    head = content.head()
    is_animation = head.startswith(b"GIF8") or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
    format = next((format for start, format in _PICTURES.items() if head.startswith(start)), None)
    if not is_animation and format is None:
        return None
    need_pillow()
    from PIL import Image

    with content.opened() as file:
        if is_animation:
            return read_animation(content.shown, file)
        with Image.open(file, formats=(str(format),)) as image:
            FRAME_PIXELS.check(image.height * image.width, content.shown)
            return as_rgb(image)[None], 1.0


@contextmanager
def _opened(content: Content) -> Iterator[tuple[Any, Any]]:
    """The container and its video stream."""
    av = require("av", "reading videos", "video")
    with (
        content.opened() as file,
        open_container(av, content.path, None if content.part is None else file) as container,
    ):
        stream = container.streams.best("video")
        if stream is None:
            raise ValueError("it holds no video")
        if stream.codec_context is None:
            raise ValueError("no decoder for it is installed")
        FRAME_PIXELS.check(stream.height * stream.width, content.shown)
        stream.codec_context.options = {"err_detect": "explode"}  # FFmpeg would paint over what is damaged
        yield container, stream


def _look_at_video(content: Content) -> Look:
    # When frames are shown: the packets say it. They are not kept, since together they are the file.
    times: list[int | None] = []
    last, damaged = 0, False
    with _opened(content) as (container, stream):
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:
                times.append(packet.pts)
                last, damaged = packet.duration or last, damaged or packet.is_corrupt
        promised, tick = stream.frames, float(stream.time_base)
        rate = float(stream.average_rate or stream.guessed_rate or 8)
    if damaged or 0 < len(times) < 0.9 * promised:
        raise ValueError(f"it ends early: it holds {len(times)} of {promised} frames")
    counted = None in times or len(set(times)) < len(times)
    # Its first frame, or all of them where only decoding tells how many there are.
    with _opened(content) as (container, stream):
        count, first = 0, None
        for frame in container.decode(stream):
            first = first or frame
            count += 1
            if not counted:
                break
            PIXELS.check(count * frame.height * frame.width, content.shown)
        if first is None:
            raise ValueError("it holds no frames")
        FRAME_PIXELS.check(first.height * first.width, content.shown)
        height, width = first.height, square_width(stream, first.width)
        if left_turns(first) % 2:
            height, width = width, height
    if counted:
        return Look(height, width, "counted", np.arange(count), 1 / rate, count / rate)
    ticks = np.sort(np.array(times, np.int64))
    shown = last or 1 / (rate * tick)  # the last frame
    return Look(height, width, "video", ticks, tick, float(ticks[-1] - ticks[0] + shown) * tick)


def _decoded(content: Content, found: Look, ticks: Sequence[int], *, from_start: bool) -> Iterator[np.ndarray]:
    """The frames of these times. A frame that was never decoded is the one shown before it, as a player has it."""
    done, before = 0, None
    picture: tuple[int, np.ndarray] | None = None  # the last one that was converted, and its time
    with _opened(content) as (container, stream):
        if not from_start:
            container.seek(int(ticks[0]), stream=stream)
        for number, frame in enumerate(_until_error(container.decode(stream), quiet=not from_start)):
            time = number if found.kind == "counted" else frame.pts
            if time is None:
                raise ValueError("a frame of it has no time")
            if before is None and time > ticks[0] and not from_start:
                break  # the file has no index of its key frames, and the search went too far
            while done < len(ticks) and (ticks[done] == time or (before is not None and ticks[done] < time)):
                shown, at = (frame, time) if ticks[done] == time else before  # pyright: ignore[reportGeneralTypeIssues]
                if picture is None or picture[0] != at:
                    picture = at, _upright(shown, content.shown)
                yield picture[1]
                done += 1
            before = frame, time
            if done == len(ticks):
                return
    if from_start:
        raise ValueError(f"it ends early: {len(ticks) - done} of {len(ticks)} frames of a clip cannot be decoded")
    yield from _decoded(content, found, ticks[done:], from_start=True)


def _until_error(frames: Iterator[Any], *, quiet: bool) -> Iterator[Any]:
    """Frames up to an error, which is passed over if ``quiet``: not every place of a file is one to begin at."""
    try:
        yield from frames
    except require("av", "reading videos", "video").error.FFmpegError:
        if not quiet:
            raise


def _upright(frame: Any, path: Path) -> np.ndarray:
    if frame.is_corrupt:
        raise ValueError("a frame of it is damaged")
    FRAME_PIXELS.check(frame.height * frame.width, path)
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), left_turns(frame)))


def refuse_missing_libraries() -> None:
    """Refuse to go on without the libraries that read videos and pictures, before work is done.

    Raises:
        InputError: one is not installed.
    """
    need_pillow()
    require("av", "reading videos", "video")
