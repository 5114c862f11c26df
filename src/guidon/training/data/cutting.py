"""Decodes clips and brings them to their size."""

from __future__ import annotations

import numpy as np

from ...media.streaming import frames_at
from .checking import Clip


def cut_out(clip: Clip) -> np.ndarray:
    """The frames of a clip, uint8 (T, H, W, 3). One frame of its file is held at a time.

    Raises:
        InputError: a frame cannot be decoded.
    """
    bucket = clip.bucket
    frames = np.empty((bucket.frames, bucket.height, bucket.width, 3), np.uint8)
    last: np.ndarray | None = None
    for number, frame in enumerate(frames_at(clip.given.content, clip.found, clip.ticks)):
        frames[number] = frames[number - 1] if frame is last else _fitted(frame, clip)
        last = frame
    return frames


def _fitted(frame: np.ndarray, clip: Clip) -> np.ndarray:
    """A frame (h, w, 3) at the clip's size (H, W, 3), resized with a filter as wide as its pixels shrink."""
    from PIL import Image

    height, width = clip.bucket.height, clip.bucket.width
    own_height, own_width = frame.shape[:2]
    if (own_height, own_width) == (height, width) == (clip.found.height, clip.found.width):
        return frame
    top = left = 0.0
    if clip.crop == "center":
        # The largest part in the middle that has the clip's shape, in pixels of the file, which may not be square.
        shape = height / width * (own_height / clip.found.height) / (own_width / clip.found.width)
        part_height, part_width = min(own_height, own_width * shape), min(own_width, own_height / shape)
        top, left = (own_height - part_height) / 2, (own_width - part_width) / 2
    box = (left, top, own_width - left, own_height - top)
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC, box=box))
