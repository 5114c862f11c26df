"""Clips to files and back: mp4, gif, webp or a folder of PNGs; and contact sheets.

Frames are uint8 (time, height, width, 3) RGB throughout.
"""

from __future__ import annotations

import math
import os
import re
import textwrap
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..core.atomic import atomic_folder, atomic_path
from ..core.errors import InputError, first_line, nearest

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("mp4", "gif", "webp", "frames", "png")
_IMAGE_DESCRIPTION = 0x010E  # the EXIF tag that holds the timing of a webp


def save_video(frames: np.ndarray, path: str | Path, fps: float = 8, format: str | None = None) -> Path:
    """Write a clip; the format is the path's suffix unless given, ``frames`` a folder of PNGs, ``png`` one image.

    mp4 is H.264 in yuv420p, which halves the resolution of colour; gif has at most 256 colours a frame; webp and
    frames are lossless. The same frames give the same bytes. A folder of frames is replaced only if it holds nothing
    else. ``fps`` is 0.1 to 1000; gif plays in hundredths of a second, webp in thousandths.

    Raises:
        InputError: frames of another type or shape, an unknown format, or a place that cannot be written.
    """
    path = Path(path)
    if format is None:
        format = path.suffix[1:].lower() or "frames"
    if format not in FORMATS:
        raise InputError(f"video format {format!r} does not exist{nearest(format, FORMATS)}")
    if not isinstance(frames, np.ndarray):
        raise InputError(f"frames are a {type(frames).__name__}: expected a uint8 array (time, height, width, 3)")
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise InputError(f"frames are {frames.dtype} {frames.shape}: expected uint8 (time, height, width, 3)")
    if not 0.1 <= fps <= 1000:
        raise InputError(f"fps {fps!r} is not a number from 0.1 to 1000")
    if format == "png" and len(frames) != 1:
        raise InputError(f"png holds one image, these are {len(frames)} frames: choose mp4, gif, webp or frames")
    _check_place(path, format)
    from PIL import Image

    if format == "frames":
        with atomic_folder(path) as folder:
            for k, image in enumerate(_images(frames)):
                image.save(folder / f"{k:04d}.png")
        return path
    with atomic_path(path) as temporary:
        if format == "mp4":
            _write_mp4(frames, temporary, fps)
        elif format == "png":
            _images(frames)[0].save(temporary)
        else:
            first, *rest = _images(frames)
            timing = f"{len(frames)} frames at {float(fps)} fps"
            if format == "webp":
                exif = Image.Exif()
                exif[_IMAGE_DESCRIPTION] = timing
                options = {"lossless": True, "exact": True, "method": 4, "exif": exif}
            else:
                options = {"optimize": False, "comment": timing.encode()}
            first.save(
                temporary,
                format=format.upper(),
                save_all=True,
                append_images=rest,
                duration=_milliseconds(fps, format),
                loop=0,
                **options,
            )
    return path


def _check_place(path: Path, format: str) -> None:
    """Make the parent folder; refuse a place where nothing can be written, or where something else would be lost."""
    if not path.name or (path.exists() and path.is_dir() != (format == "frames")):
        raise InputError(f"{path} is {'a folder' if path.is_dir() else 'a file'}: give {format} a path of its own")
    if path.is_dir() and any(re.fullmatch(r"\d{4,}\.png", entry.name) is None for entry in path.iterdir()):
        raise InputError(f"the folder {path} holds more than frames, which would be lost: give a new or empty folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path.parent} cannot be made: {error.strerror}; choose another folder") from None
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"the folder {path.parent} is not writable: choose another")


def _milliseconds(fps: float, format: str) -> int:
    """How long a frame is shown; in tens for gif, so that the sum over equal frames is exact."""
    return 10 * max(1, round(100 / fps)) if format == "gif" else max(1, round(1000 / fps))


def _images(frames: np.ndarray) -> list[Image.Image]:
    from PIL import Image

    return [Image.fromarray(frame) for frame in frames]


def _write_mp4(frames: np.ndarray, path: Path, fps: float) -> None:
    import av

    _, height, width, _ = frames.shape
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")  # yuv420p needs even sides
    options = {"crf": "10", "preset": "medium", "threads": "1", "bf": "0"}
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        container.flags |= 0x0400  # bitexact: no version string, no date
        stream = container.add_stream("libx264", rate=Fraction(float(fps)).limit_denominator(1000), options=options)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def load_video(path: str | Path) -> tuple[np.ndarray, float]:
    """Frames (time, height, width, 3) and frames per second of a file or a folder of PNGs (then 8 a second).

    Raises:
        InputError: nothing there, or nothing that can be read as video.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} is not there")
    try:
        if path.is_dir():
            return _read_folder(path), 8.0
        return _read_animation(path) if path.suffix.lower() in (".gif", ".webp") else _read_container(path)
    except InputError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read as video: {first_line(error)}") from None


def _read_folder(path: Path) -> np.ndarray:
    from PIL import Image

    files = sorted(path.glob("*.png"), key=lambda file: (len(file.stem) if file.stem.isdecimal() else 0, file.name))
    if not files:
        raise InputError(f"the folder {path} holds no PNG frames")
    return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])


def _read_animation(path: Path) -> tuple[np.ndarray, float]:
    from PIL import Image, ImageSequence

    with Image.open(path) as image:
        comment = image.info.get("comment", b"").decode("ascii", "replace")
        timing = comment or image.getexif().get(_IMAGE_DESCRIPTION, "")
        frames, shown = [], []
        for frame in ImageSequence.Iterator(image):
            frames.append(np.asarray(frame.convert("RGB")))
            shown.append(int(image.info.get("duration") or 0))
        format = str(image.format).lower()
    # Both encoders merge equal neighbours into one frame shown longer: take them apart again.
    if ours := re.fullmatch(r"(\d+) frames at ([\d.]+) fps", str(timing)):
        count, fps = int(ours[1]), float(ours[2])
        unit = _milliseconds(fps, format)
        repeats = [count] if len(frames) == 1 else [max(1, round(time / unit)) for time in shown]
    else:
        unit = math.gcd(*shown)
        fps = 1000 / unit if unit else 8.0
        repeats = [time // unit for time in shown] if unit and 0 not in shown else [1] * len(frames)
    return np.repeat(np.stack(frames), repeats, axis=0), fps


def _read_container(path: Path) -> tuple[np.ndarray, float]:
    import av

    with av.open(str(path)) as container:
        if not container.streams.video:
            raise InputError(f"{path} holds no video")
        rate = container.streams.video[0].average_rate
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    if not frames:
        raise InputError(f"{path} holds no frames")
    return np.stack(frames), float(rate or 8)


def contact_sheet(
    clips: Sequence[Sequence[np.ndarray]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    *,
    path: str | Path,
    shown: int = 4,
) -> Path:
    """A labelled PNG: a row per prompt, a column per sample or setting, each cell a strip of ``shown`` frames.

    Small clips are enlarged by whole factors; long row labels wrap, long column labels are shortened.

    Raises:
        InputError: no clips, labels that do not match them, frames of different sizes, or a path that is no PNG's.
    """
    from PIL import Image, ImageDraw, ImageFont

    if len(clips) != len(row_labels) or any(len(row) != len(column_labels) for row in clips):
        raise InputError("a contact sheet needs one label per row and one per column")
    if not row_labels or not column_labels:
        raise InputError("a contact sheet needs at least one clip")
    sizes = sorted({clip.shape[1:3] for row in clips for clip in row})
    if len(sizes) > 1:
        raise InputError(f"a contact sheet needs frames of one size, not {', '.join(f'{w}x{h}' for h, w in sizes)}")
    font = ImageFont.load_default(size=14)
    gap, line = 10, 20
    zoom = max(1, 96 // clips[0][0].shape[2])
    strips = [[_strip(clip, shown, zoom) for clip in row] for row in clips]
    cell_height = strips[0][0].shape[0]
    cell_width = max(strip.shape[1] for row in strips for strip in row)
    width = gap + len(column_labels) * (cell_width + gap)
    wrapped = [textwrap.wrap(label, max(20, (width - 2 * gap) // 8)) or [""] for label in row_labels]
    height = line + gap + sum(len(label) * line + cell_height + gap for label in wrapped)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for column, label in enumerate(column_labels):
        while len(label) > 1 and draw.textlength(label, font=font) > cell_width:
            label = label.rstrip("…")[:-1] + "…"
        draw.text((gap + column * (cell_width + gap), 5), label, fill="black", font=font)
    top = line + gap // 2
    for label, row in zip(wrapped, strips, strict=True):
        for text in label:
            draw.text((gap, top), text, fill="#444444", font=font)
            top += line
        for column, strip in enumerate(row):
            sheet.paste(Image.fromarray(strip), (gap + column * (cell_width + gap), top))
        top += cell_height + gap
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"{path} is not named as a PNG: give a path that ends in .png")
    _check_place(path, "png")
    with atomic_path(path) as temporary:
        sheet.save(temporary)
    return path


def _strip(clip: np.ndarray, shown: int, zoom: int) -> np.ndarray:
    """Evenly spaced frames side by side, one pixel apart, enlarged."""
    picked = clip[np.linspace(0, len(clip) - 1, min(shown, len(clip))).round().astype(int)]
    large = picked.repeat(zoom, axis=1).repeat(zoom, axis=2)
    return np.concatenate([np.pad(frame, ((0, 0), (0, 2), (0, 0)), constant_values=255) for frame in large], axis=1)[
        :, :-2
    ]
