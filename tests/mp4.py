"""Two mp4 of the same frames."""

from pathlib import Path

import numpy as np

from guidon.media.files import load_video


def assert_alike(path: Path | str, other: Path | str) -> None:
    """The files hold the same frames. x264 may code these otherwise on a busy machine: up to 8 of 255 were seen."""
    (frames, fps), (others, rate) = (load_video(file) for file in (path, other))
    assert (frames.shape, fps) == (others.shape, rate)
    assert np.abs(frames.astype(int) - others).max() <= 16
