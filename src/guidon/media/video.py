"""A generated clip together with the settings that made it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.atomic import write_json
from .files import save_video


@dataclass(frozen=True)
class Video:
    """One generated clip, or image, with the settings that reproduce it."""

    frames: np.ndarray
    """uint8 (time, height, width, 3); an image has one frame."""
    fps: float
    """Frames per second."""
    manifest: dict[str, Any]
    """The settings, the hashes of the weights and the versions that made the frames; plain data for JSON."""

    def save(self, path: str | Path, format: str | None = None) -> Path:
        """Write the clip, and its manifest as ``<path>.json`` beside it.

        ``path`` and ``format`` are those of ``save_video``.

        Raises:
            InputError: the format does not exist or the path cannot be written.
        """
        path = Path(path)
        save_video(self.frames, path, self.fps, format)
        write_json(path.with_name(path.name + ".json"), self.manifest)
        return path
