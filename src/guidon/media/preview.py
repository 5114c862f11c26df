"""A clip as a piece of HTML that plays in a notebook, without a network or a script."""

from __future__ import annotations

import base64
import html
import io
import math
from importlib.util import find_spec

import numpy as np

SIDE = 256  # pixels: a clip whose shorter side has fewer is enlarged by a whole factor
LONGEST = 1024  # pixels of the longer side at the most
PIXELS = 6_000_000  # of all frames together: a larger clip is made smaller, to about 1 MB of HTML


def preview_html(frames: np.ndarray, fps: float, caption: str) -> str | None:
    """An animated picture with a caption under it; None where Pillow is not installed.

    A picture, not a video: every notebook shows an ``<img>`` of inline data, one that is not trusted too. Small clips
    are enlarged without smoothing and kept exactly; large ones are made smaller and compressed.

    Args:
        frames: uint8 (time, height, width, 3).
        fps: frames per second.
        caption: plain text; it is escaped.
    """
    if find_spec("PIL") is None:
        return None
    from PIL import Image

    height, width = frames.shape[1:3]
    pixels = frames.size // 3
    # enlarged by a whole factor, or made smaller, within the limits
    whole = min(SIDE // min(height, width), LONGEST // max(height, width), math.isqrt(PIXELS // pixels))
    factor = whole or min(1.0, LONGEST / max(height, width), math.sqrt(PIXELS / pixels))
    size = max(1, int(width * factor)), max(1, int(height * factor))
    how = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.BOX
    first, *rest = (Image.fromarray(frame).resize(size, how) for frame in frames)
    file = io.BytesIO()
    options = {"lossless": True} if factor >= 1 and pixels <= PIXELS // 16 else {"quality": 80}
    duration = max(1, round(1000 / fps))
    first.save(file, "WEBP", save_all=True, append_images=rest, duration=duration, loop=0, method=0, **options)
    data, text = base64.b64encode(file.getvalue()).decode(), html.escape(caption)
    return (
        f'<figure style="margin:0"><img src="data:image/webp;base64,{data}" alt="{text}" '
        f'width="{size[0]}" height="{size[1]}"><figcaption>{text}</figcaption></figure>'
    )
