"""Pictures and videos that a clip is to hold: read, identified by a hash, and brought to the size of the clip."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..core.errors import InputError, quoted, setting
from ..core.hashing import hash_files
from ..core.reading import FRAME_PIXELS, is_there, reading, regular_file
from .files import as_images, as_rgb, load_video
from .video import Video

if TYPE_CHECKING:
    from PIL import Image

GIVE = (
    "give a path, an array (time, height, width, 3) or (height, width, 3) of uint8 or of floats from 0 to 1, an image "
    "of PIL, or a list of images"
)


@dataclass(frozen=True, eq=False)
class Frames:
    """A picture or a video."""

    frames: np.ndarray
    """uint8 (time, height, width, 3)."""
    sha256: str
    """The hash of its file, or of its frames where there is no file."""
    file: str | None
    """Its path as it was given; None where there is no file."""


def read_frames(given: Any, name: str) -> Frames:
    """The frames of a path, an array, an image of PIL, a list of images, or a ``Video``.

    Args:
        given: what the caller gave. An array of floats holds intensities from 0 to 1.
        name: of the setting, for messages.

    Raises:
        InputError: it is none of these, or the file cannot be read.
    """
    if isinstance(given, str | Path):
        path = Path(given)
        if re.match(r"\w{2,}:/", str(given)):
            raise InputError(f"{setting(name)} {quoted(str(given))} is an address: fetch the file, and give its path")
        if not str(given) or not is_there(path, "a picture or a video"):
            raise InputError(
                f"{setting(name)} {quoted(str(given))} is not there: give the path of a picture or a video"
            )
        frames, _ = load_video(path)
        return Frames(frames, hash_of(path), str(given))
    frames = _as_frames(given, name)
    digest = sha256(f"{frames.shape} ".encode())
    digest.update(np.ascontiguousarray(frames).data)
    return Frames(frames, digest.hexdigest(), None)


def hash_of(path: Path) -> str:
    """The SHA-256 of a file; of a folder of frames, that of its PNG files one after the other, by their names."""
    with reading(path, "a picture or a video"):
        files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".png") if path.is_dir() else [path]
        return hash_files(*(regular_file(file, "a picture or a video") for file in files))


def _as_frames(given: Any, name: str) -> np.ndarray:
    if isinstance(given, Video):
        return given.frames
    if isinstance(given, list | tuple) and given:
        frames = [_as_frames(each, name) for each in given]
        if len(frames) > 1 and any(len(each) > 1 for each in frames):
            raise InputError(f"{setting(name)} is a list of {len(frames)} videos: give one, and call once for each")
        if len({each.shape[1:] for each in frames}) > 1:
            raise InputError(f"{setting(name)} holds images of different sizes: give images of one size")
        return np.concatenate(frames)
    if callable(getattr(given, "convert", None)):  # an image of PIL
        return as_rgb(cast("Image.Image", given))[None]
    if isinstance(given, np.ndarray) and given.ndim in (3, 4) and given.shape[-1] == 3 and given.size:
        frames = given if given.ndim == 4 else given[None]
        if frames.dtype == np.uint8:
            return frames
        if np.issubdtype(frames.dtype, np.floating) and frames.min() >= 0 and frames.max() <= 1:
            return (frames * 255).round().astype(np.uint8)
        raise InputError(
            f"{setting(name)} is an array of {frames.dtype} from {frames.min():g} to {frames.max():g}: give uint8, or "
            "floats from 0 to 1"
        )
    found = f"an array {given.shape}" if isinstance(given, np.ndarray) else quoted(given)
    raise InputError(f"{setting(name)} is {found}: {GIVE}")


def find_frames(file: str | None, wanted: str, given: Mapping[str, Any], folders: Sequence[Path]) -> np.ndarray:
    """The frames of a reference that a request names, as uint8 (time, height, width, 3).

    Args:
        file: its path; None where its frames were given in Python.
        wanted: its hash.
        given: frames that a caller gives in place of files, by their hash.
        folders: where the file is looked for too, by its path and by its name.

    Raises:
        InputError: it is nowhere, or the file that is there has other content.
    """
    if wanted in given:
        return given[wanted]
    if file is None:
        raise InputError(
            "frames of this clip were given in Python, and its manifest holds a hash alone: give the same frames as "
            "reference_frames"
        )
    places = [Path(file), *(folder / part for folder in folders for part in (file, Path(file).name))]
    found = [place for place in places if is_there(place, "a picture or a video")]
    for place in found:
        if hash_of(place) == wanted:
            return load_video(place)[0]
    if found:
        raise InputError(
            f"{found[0]} is not the file that the clip was made with: put that one back, or beside the "
            f"manifest; its SHA-256 is {wanted[:12]}…"
        )
    raise InputError(
        f"{file} is not there, which the clip was made with: put it back, or beside the manifest; its SHA-256 is "
        f"{wanted[:12]}…"
    )


def resize_to_fill(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Frames resized until they cover a size, and their middle cut out, as Open-Sora does: uint8 (T, height, width, 3).

    Args:
        frames: uint8 (time, height, width, 3).
        height: of the result, in pixels.
        width: of the result, in pixels.

    Raises:
        InputError: they are so narrow that most of what covers the size would be cut off.
    """
    from PIL import Image

    own_height, own_width = frames.shape[1:3]
    if (own_height, own_width) == (height, width):
        return frames
    scale = max(height / own_height, width / own_width)
    covers = max(height, round(own_height * scale)), max(width, round(own_width * scale))
    if covers[0] * covers[1] > FRAME_PIXELS.value:
        raise InputError(
            f"a picture of {own_height}x{own_width} is too narrow to fill {height}x{width}: cut out a part of it"
        )
    top, left = round((covers[0] - height) / 2), round((covers[1] - width) / 2)
    resized = [image.resize((covers[1], covers[0]), Image.Resampling.BICUBIC) for image in as_images(frames)]
    return np.stack([np.asarray(each)[top : top + height, left : left + width] for each in resized])
