"""A generated clip together with the settings that made it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..core.atomic import write_json
from ..core.errors import InputError, quoted
from .files import check_length, enlarge, format_of, save_video
from .formats import check_fps, check_upscale
from .preview import preview_html

_TOLD = ("cfg_scale", "cfg_channels", "guidance", "steps", "seed")  # settings that the description of a clip names


@dataclass(frozen=True, eq=False, repr=False)
class Video:
    """One generated clip, or image, with the settings that reproduce it. A notebook plays it."""

    frames: np.ndarray
    """uint8 (time, height, width, 3); an image has one frame."""
    fps: float
    """Frames per second."""
    manifest: dict[str, Any]
    """The settings, the hashes of the weights and the versions that made the frames; plain data for JSON."""

    def save(self, path: str | Path, format: str | None = None, *, upscale: int = 1, fps: float | None = None) -> Path:
        """Write the clip, and its manifest as ``<path>.json`` beside it.

        The manifest's part "output" says how the frames were written. It does not decide the frames.

        Args:
            path: the file, or the folder of a clip in format "frames".
            format: as in ``save_video``. Without it and without a suffix of the path, the clip is a folder of PNGs.
            upscale: how many times the frames are enlarged in the file, each pixel to equal ones. A clip of 64x64
                pixels is a stamp on a screen.
            fps: frames per second that the file is played at; None for the clip's own.

        Raises:
            InputError: the format does not exist, the path cannot be written, or a number is out of range.
        """
        if not isinstance(path, str | Path):
            raise InputError(f"a video was to be saved as {quoted(path)}: give a path such as 'circle.mp4'")
        path, fps = Path(path), self.fps if fps is None else fps
        format = format_of(path) if format is None else format
        check_fps(fps)
        check_upscale(upscale, *self.frames.shape[:3])
        fps, upscale = fps if isinstance(fps, int) else float(fps), int(upscale)  # numbers that JSON holds
        manifest = path.parent / f"{path.name}.json"
        check_length(manifest)
        save_video(enlarge(self.frames, upscale), path, fps, format)
        output = {"format": format, "fps": fps, "upscale": upscale}
        write_json(manifest, self.manifest | {"output": output})
        return path

    def __getitem__(self, key: object) -> NoReturn:
        raise TypeError(
            f"a Video is one clip and has no [{key!r}]: take video.frames, uint8 (time, height, width, 3), or call the "
            "pipeline with output_type='np' for an output as in diffusers"
        )

    @property
    def prompt(self) -> str | None:
        """What was to be shown; None where the manifest does not say it."""
        prompts = self._generation.get("prompts")
        return ", ".join(map(str, prompts)) if prompts else None

    @property
    def _generation(self) -> dict[str, Any]:
        return self.manifest.get("generation", {})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Video):
            return NotImplemented
        return (self.fps, self.manifest) == (other.fps, other.manifest) and np.array_equal(self.frames, other.frames)

    def __hash__(self) -> int:
        return hash((self.fps, self.frames.shape))

    def __repr__(self) -> str:
        prompt = "" if self.prompt is None else f"{self.prompt!r}, "
        settings = "".join(f", {name} {self._generation[name]}" for name in _TOLD if name in self._generation)
        return f"<Video {prompt}{self._size()}{settings}>"

    def _repr_html_(self) -> str | None:
        prompt = "" if self.prompt is None else f"{self.prompt} · "
        scale = f" · cfg_scale {self._generation['cfg_scale']}" if "cfg_scale" in self._generation else ""
        return preview_html(self.frames, self.fps, f"{prompt}{self._size()}{scale}")

    def _size(self) -> str:
        """Such as "64x64, 16 frames at 8 fps"."""
        count, height, width = self.frames.shape[:3]
        return f"{height}x{width}" + (f", {count} frames at {self.fps:g} fps" if count > 1 else "")
