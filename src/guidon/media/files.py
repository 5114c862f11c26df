"""Writes and reads clips: mp4, gif, webp, a folder of PNGs, or one PNG.

Frames are uint8 RGB arrays (time, height, width, 3).
"""

from __future__ import annotations

import errno
import math
import os
import re
import stat
import tempfile
from collections.abc import Sequence, Set
from fractions import Fraction
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ..core.atomic import atomic_folder, atomic_path
from ..core.errors import InputError, quoted
from ..core.extras import require
from ..core.reading import FRAME_PIXELS, PIXELS, reading, regular_file
from .formats import check_format, check_fps, check_library

if TYPE_CHECKING:
    from PIL import Image

_CLIPS = (".mp4", ".gif", ".webp")
_PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP"}  # suffix -> format, as Pillow names it
# Formats of one file. A playlist is a video to FFmpeg too, and FFmpeg would read the files that it names.
_CONTAINERS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,flv,ogg,asf,mxf,nut,ivf,obu,dv,mjpeg,apng,h264,hevc,"
    "yuv4mpegpipe"
)
_IMAGE_DESCRIPTION = 0x010E  # the EXIF tag that holds the timing of a webp
_ORIENTATION = 0x0112  # the EXIF tag by which cameras turn a picture


def save_video(
    frames: np.ndarray, path: str | Path, fps: float = 8, format: str | None = None, *, quick: bool = False
) -> Path:
    """Write a clip. The same frames give the same bytes, but for rare cases of mp4 (docs/reliability.md).

    Args:
        frames: uint8 (time, height, width, 3).
        path: the file, or the folder of a clip in format "frames". An existing folder is replaced only if it holds
            nothing but frames.
        fps: frames per second, 0.1 to 1000. gif rounds the time of a frame to 1/100 s, webp to 1/1000 s.
        format: "mp4" (H.264 in yuv420p, which halves the resolution of colour), "gif" (at most 256 colours a frame),
            "webp" (lossless), "frames" (a folder of PNGs, lossless) or "png" (one image). None takes it from the
            path's suffix; no suffix means "frames".
        quick: encode an mp4 with less search: as exact, in a third of the time.

    Raises:
        InputError: frames of another type or shape, an unknown format, a path that cannot be written, or mp4 without
            its library.
        OSError: the disk is full or broken. What was at the path is still there.
    """
    path = Path(path)
    format = format_of(path) if format is None else format
    check_format(format)
    check_library(format)
    if not isinstance(frames, np.ndarray):
        raise InputError(f"frames are a {type(frames).__name__}: expected a uint8 array (time, height, width, 3)")
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise InputError(f"frames are {frames.dtype} {frames.shape}: expected uint8 (time, height, width, 3)")
    check_fps(fps)
    if format == "png" and len(frames) != 1:
        raise InputError(f"png holds one image, these are {len(frames)} frames: choose mp4, gif, webp or frames")
    check_place(path, format)
    need_pillow()
    from PIL import Image

    if format == "frames":
        with atomic_folder(path) as folder:
            for k, image in enumerate(as_images(frames)):
                image.save(folder / f"{k:04d}.png")
        return path
    with atomic_path(path) as temporary:
        if format == "mp4":
            _write_mp4(frames, temporary, fps, "veryfast" if quick else "medium")
        elif format == "png":
            as_images(frames)[0].save(temporary)
        else:
            first, *rest = as_images(frames)
            timing = f"{len(frames)} frames at {float(fps)} fps"
            if format == "webp":
                exif = Image.Exif()
                exif[_IMAGE_DESCRIPTION] = timing
                options = {"lossless": True, "exact": True, "method": 4, "exif": exif}
            else:
                options = {"optimize": False, "comment": timing.encode()}
            try:
                first.save(
                    temporary,
                    format=format.upper(),
                    save_all=True,
                    append_images=rest,
                    duration=_milliseconds(fps, format),
                    loop=0,
                    **options,
                )
            except OverflowError:  # equal frames become one, whose time gif holds in 16 bits
                raise InputError(
                    f"{len(frames)} frames at {fps:g} fps stand still for longer than the 655 s that gif can hold: "
                    "raise fps, or choose webp or mp4"
                ) from None
    return path


def enlarge(frames: np.ndarray, factor: int) -> np.ndarray:
    """Frames (T, H, W, 3) with each pixel as ``factor`` x ``factor`` equal ones: (T, factor H, factor W, 3)."""
    return frames if factor == 1 else frames.repeat(factor, axis=1).repeat(factor, axis=2)


def shrink(frames: np.ndarray, factor: int, height: int, width: int) -> np.ndarray:
    """What ``enlarge`` made frames of, (T, height, width, 3). Each pixel is the mean of its ``factor`` x ``factor``.

    Raises:
        ValueError: the frames are not of the enlarged size. Those of an mp4 may have one row or column more.
    """
    size = height * factor, width * factor
    if not all(0 <= found - side <= 1 for found, side in zip(frames.shape[1:3], size, strict=True)):
        found = f"{frames.shape[1]}x{frames.shape[2]}"
        raise ValueError(f"its frames are {found}, its manifest says {height}x{width} enlarged {factor} times")
    if factor == 1:
        return frames
    blocks = frames[:, : size[0], : size[1]].reshape(len(frames), height, factor, width, factor, 3)
    return blocks.mean(axis=(2, 4)).round().astype(np.uint8)


def format_of(path: Path) -> str:
    """The format that a path's suffix stands for; "frames", a folder, where it has none."""
    return path.suffix[1:].lower() or "frames"


def check_place(path: Path, format: str) -> None:
    """Make the parent folder. Refuse a path that cannot be written, or a folder that holds other files."""
    check_length(path)
    found = _what_is(path)
    if not path.name or found not in (None, "folder" if format == "frames" else "file"):
        raise InputError(f"{path} is a {found}: give {format} a path of its own")
    if found == "folder" and any(re.fullmatch(r"\d{4,}\.png", name) is None for name in _names_in(path)):
        raise InputError(f"the folder {path} holds more than frames, which would be lost: give a new or empty folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path.parent} cannot be made: {error.strerror}; choose another folder") from None
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):  # the folder is right, the disk is not
            raise
        raise InputError(f"the folder {path.parent} is not writable ({error.strerror}): choose another") from None


def check_length(path: Path) -> None:
    """Refuse a path that is too long for the file system."""
    try:
        path.lstat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            size = len(os.fsencode(path.name))
            raise InputError(
                f"{quoted(path.name)}, {size} bytes, is too long for a file: give a shorter name"
            ) from None


def _what_is(path: Path) -> str | None:
    """ "folder", "file", or None if nothing is there. It looks once, because another process may replace the path."""
    try:
        return "folder" if stat.S_ISDIR(path.stat().st_mode) else "file"
    except (FileNotFoundError, NotADirectoryError):
        return None


def _names_in(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except FileNotFoundError:  # another process is replacing it
        return []


def _milliseconds(fps: float, format: str) -> int:
    """How long a frame is shown. For gif a multiple of ten, so that the sum over equal frames is exact."""
    return 10 * max(1, round(100 / fps)) if format == "gif" else max(1, round(1000 / fps))


def need_pillow() -> None:
    """Raise InputError if Pillow is not installed."""
    require("PIL", "an image file", "video", package="pillow")


def as_rgb(image: Image.Image) -> np.ndarray:
    """A picture as uint8 (height, width, 3), upright as its EXIF tag says, 16 bits scaled to 8, on white."""
    from PIL import Image, ImageOps

    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # convert would cut everything above 255
        grey = np.round(np.asarray(image).astype(np.float32) / 257).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.array(image.convert("RGB"))


def as_images(frames: np.ndarray) -> list[Image.Image]:
    from PIL import Image

    return [Image.fromarray(frame) for frame in frames]


def _write_mp4(frames: np.ndarray, path: Path, fps: float, preset: str) -> None:
    av = require("av", "writing mp4", "video")
    _, height, width, _ = frames.shape
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")  # yuv420p needs even sides
    options = {"crf": "10", "preset": preset, "threads": "1", "bf": "0"}
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        container.flags |= 0x0400  # bitexact: no version string, no date
        stream = container.add_stream("libx264", rate=Fraction(float(fps)).limit_denominator(1000), options=options)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def load_video(path: str | Path) -> tuple[np.ndarray, float]:
    """Read a video file, a picture (PNG, JPEG or BMP), or a folder of PNGs. Transparent parts become white.

    A folder with clips or with their contact sheet, as ``guidon generate`` writes it, is no clip.
    Frames are upright, as the file says how the camera was held, and their pixels are square. A clip
    of more than ``core.reading.PIXELS`` pixels is refused, before it is decoded if the file says its length.

    Returns:
        Frames, uint8 (time, height, width, 3), and frames per second. Pictures do not record a rate: 8 is assumed.

    Raises:
        InputError: the path does not exist, cannot be read as video, has too many pixels, or needs a library that is
            not installed.
    """
    path = Path(path)
    with reading(path, "video"):
        if path.is_dir():
            return _read_folder(path), 8.0
        regular_file(path, "video")
        suffix = path.suffix.lower()
        if suffix in _PICTURES:
            return _read_pictures(path, [path], _PICTURES[suffix]), 8.0
        return read_animation(path) if suffix in (".gif", ".webp") else _read_container(path)


class _Frames:
    """Collects frames of one size in one buffer, up to the limit of pixels."""

    def __init__(self, path: Path) -> None:
        self.path, self.shape, self.count, self._bytes = path, (0, 0), 0, bytearray()

    def expect(self, count: int, height: int, width: int) -> None:
        """Refuse ``count`` more frames of this size, before they are decoded, if there would be too many."""
        if self.count and self.shape != (height, width):
            raise ValueError(f"its frames have different sizes, {self.shape} and {(height, width)}")
        self.shape = height, width
        FRAME_PIXELS.check(height * width, self.path)
        PIXELS.check((self.count + count) * height * width, self.path)

    def add(self, frame: np.ndarray) -> None:
        """Add one frame, uint8 (height, width, 3)."""
        self.expect(1, *frame.shape[:2])
        self._bytes += np.ascontiguousarray(frame).data
        self.count += 1

    def together(self) -> np.ndarray:
        """All frames, uint8 (time, height, width, 3)."""
        if not self.count:
            raise ValueError("it holds no frames")
        return np.frombuffer(self._bytes, np.uint8).reshape(self.count, *self.shape, 3)


def is_sheet(name: str, beside: Set[str]) -> bool:
    """Whether a file is the contact sheet that ``guidon generate`` wrote beside its clips.

    Args:
        name: of the file.
        beside: the names in its folder. A clip among them has its manifest.
    """
    return name.endswith("-sheet.png") and any(f"{each}.json" in beside for each in beside)


def _read_folder(path: Path) -> np.ndarray:
    names = {file.name for file in path.iterdir()}
    if clip := next((name for name in sorted(names) if Path(name).suffix.lower() in _CLIPS), None):
        raise InputError(f"{path} holds the clip {clip}: give that file, or a folder of PNG frames alone")
    if sheet := next((name for name in sorted(names) if is_sheet(name, names)), None):
        raise InputError(f"{path} holds {sheet}, which is no frame of a clip: give one of the clips in it")
    found = [path / name for name in names if Path(name).suffix.lower() == ".png"]
    files = sorted(found, key=lambda file: (len(file.stem) if file.stem.isdecimal() else 0, file.name))
    if not files:
        raise InputError(f"the folder {path} holds no PNG frames")
    return _read_pictures(path, files, "PNG")


def _read_pictures(path: Path, files: Sequence[Path], format: str) -> np.ndarray:
    need_pillow()
    from PIL import Image

    frames = _Frames(path)
    for file in files:
        with reading(file, "a frame"), Image.open(regular_file(file, "a frame"), formats=(format,)) as image:
            frames.expect(1, image.height, image.width)
            frames.add(as_rgb(image))
    return frames.together()


def read_animation(path: Path, file: IO[bytes] | None = None) -> tuple[np.ndarray, float]:
    """All frames of a gif or webp, and frames per second. ``file``: its content, if it is not a file of its own."""
    need_pillow()
    from PIL import Image, ImageSequence

    frames, shown = _Frames(path), list[int]()
    with Image.open(path if file is None else file, formats=("GIF", "WEBP")) as image:
        comment = image.info.get("comment", b"").decode("ascii", "replace")
        timing = comment or image.getexif().get(_IMAGE_DESCRIPTION, "")
        frames.expect(getattr(image, "n_frames", 1), image.height, image.width)
        for frame in ImageSequence.Iterator(image):
            frames.add(as_rgb(frame))
            shown.append(int(image.info.get("duration") or 0))
        format = str(image.format).lower()
    # Both encoders merge equal consecutive frames into one that is shown longer. Repeat it to get them all back.
    if ours := re.fullmatch(r"(\d{1,12}) frames at ([\d.]{1,40}) fps", str(timing)):
        count, fps = int(ours[1]), float(ours[2])
        if not 0.1 <= fps <= 1000:
            raise ValueError(f"its comment says {fps:g} frames per second")
        unit = _milliseconds(fps, format)
        repeats = [count] if frames.count == 1 else [max(1, round(time / unit)) for time in shown]
        if sum(repeats) != count:
            raise ValueError(f"its comment says {count} frames, it holds {sum(repeats)}")
    elif (unit := min(shown)) and not any(time % unit for time in shown):
        fps, repeats = 1000 / unit, [time // unit for time in shown]
    else:  # times that were rounded, as the 30, 30 and 40 ms of 30 frames per second; or that were left out
        timed = [time for time in shown if time]
        fps, repeats = 1000 * len(timed) / sum(timed) if timed else 8.0, [1] * frames.count
    PIXELS.check(sum(repeats) * math.prod(frames.shape), path)
    return np.repeat(frames.together(), repeats, axis=0), fps


def _read_container(path: Path) -> tuple[np.ndarray, float]:
    av = require("av", f"reading {path.suffix[1:].lower() or 'video'}", "video")
    frames = _Frames(path)
    with open_container(av, path) as container:
        if not container.streams.video:
            raise InputError(f"{path} holds no video")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise ValueError("no decoder for it is installed")
        FRAME_PIXELS.check(stream.height * stream.width, path)
        frames.expect(max(1, stream.frames), stream.height, square_width(stream, stream.width))
        for frame in container.decode(video=0):
            width, turns = square_width(stream, frame.width), left_turns(frame)
            frames.expect(1, *((width, frame.height) if turns % 2 else (frame.height, width)))
            frames.add(np.rot90(frame.to_ndarray(format="rgb24", width=width), turns))
        rate = stream.average_rate
    return frames.together(), float(rate or 8)


def square_width(stream: Any, width: int) -> int:
    """The width of a video's frames with square pixels, before they are turned."""
    aspect = float(stream.sample_aspect_ratio or 1)
    return max(1, round(width * aspect)) if 0.1 < aspect < 10 else width


def left_turns(frame: Any) -> int:
    """How many quarter turns to the left make a video's frame upright. PyAV tells it from version 14 on."""
    return round(getattr(frame, "rotation", 0) / 90)


def open_container(av: Any, path: Path, file: IO[bytes] | None = None) -> Any:
    """An open video of PyAV.

    Args:
        av: the library.
        path: the file.
        file: its content, if it is not a file of its own.

    Raises:
        ValueError: it is in no format that is read.
    """
    options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
    # Before PyAV 19, titles and the like that are not UTF-8 were an error unless this is said.
    lenient = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
    try:
        return av.open(str(path) if file is None else file, options=options, **lenient)
    except av.error.ArgumentError:
        raise ValueError("it is not in a format that Guidon reads: convert a video to mp4, a picture to PNG") from None
