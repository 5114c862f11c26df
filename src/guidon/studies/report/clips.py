"""The clips of a study as its page holds them: exact strips of frames for some prompts, small ones for the others."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from ...core.extras import require
from ...core.hashing import hash_files
from ...core.reading import reading
from ...media import save_video
from ...metrics.metric import SHARE, Metric
from ..cells import Cell
from ..words import write_value
from .command import generate_command

Image = require("PIL.Image", "the clips of a report", "study", package="pillow")

SMALL = (64, 32)
"""The longest sides of a small clip's frame in px, the better one first."""
QUALITY = 60  # of a small clip, 0 to 100
SMALL_SHARE = 0.7  # the share of a page's clips that small ones may take before the next smaller side is used
SAMPLED = 4  # prompts whose small clips show how much room those of all prompts need
WEBP_PIXELS = 16383  # the widest picture that WebP holds


@dataclass(frozen=True)
class Clip:
    """A cell as the page shows it."""

    cell: Cell
    picture: str
    """A picture of its frames side by side, as a data URI."""
    exact: bool
    """Whether the picture is clip.png. If not, it is smaller and compressed."""
    value: str
    """The primary metric in words."""
    video: str
    """The link to its MP4; empty if there is none."""
    command: str = ""
    """The command that reproduces it; empty if the clip is not exact."""
    seed: int = 0
    digest: str = ""
    """SHA-256 of clip.png; empty if the clip is not exact."""

    @property
    def size(self) -> int:
        """About how many bytes it takes on the page."""
        return len(self.picture) + (1500 if self.exact else 400)


@dataclass(frozen=True)
class Source:
    """A cell, from which clips are made."""

    cell: Cell
    metric: Metric
    """The primary metric."""
    value: float
    """Its value in that metric."""
    shape: tuple[int, int, int, int]
    """The shape of its frames."""
    page: Path | None
    """The page whose folder the link to its MP4 is relative to; None for no link."""
    parts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """How the model is loaded, as ``generate_command`` takes it."""

    def exact(self) -> Clip:
        """The clip with exact frames, and with what reproduces it.

        Raises:
            InputError: the picture is damaged.
        """
        cell = self.cell
        generation = cell.manifest().generation.model_dump(mode="json")
        path = cell.folder / "clip.png"
        with reading(path, "the clip of a cell"):
            data, digest = path.read_bytes(), hash_files(path)
        return Clip(
            cell, _data_uri("png", data), True, self._value(), self._video(),
            generate_command(generation, parts=self.parts), generation["seed"], digest,
        )  # fmt: skip

    def small(self, side: int) -> Clip:
        """The clip with frames of at most ``side`` px."""
        return Clip(
            self.cell,
            _data_uri("webp", small_strip(self.cell.frames(self.shape), side)),
            False,
            self._value(),
            self._video(),
        )

    def _value(self) -> str:
        if self.metric.unit == SHARE and self.metric.kind == "alignment" and self.value in (0, 1):
            return f"{self.metric.label}: {'yes' if self.value else 'no'}"
        return f"{self.metric.label}: {write_value(self.value, self.metric.unit)}{_unit(self.metric.unit)}"

    def _video(self) -> str:
        if self.page is None:
            return ""
        relative = Path(os.path.relpath(video_path(self.cell), self.page.resolve().parent))
        return quote(os.fsencode(relative.as_posix()))


def _unit(unit: str) -> str:
    return "" if unit == SHARE else f" {unit}"


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def small_strip(frames: np.ndarray, side: int) -> bytes:
    """Frames (T, H, W, 3) side by side as a lossy WebP. A frame has at most ``side`` px a side, and the strip no more
    than a WebP can hold."""
    count, height, width, _ = frames.shape
    share = min(1.0, side / max(height, width), WEBP_PIXELS / (count * width))
    size = max(1, int(width * share)), max(1, round(height * share))
    # Where a pixel is a whole number of pixels wide, it does not reach into the next frame: all frames at once.
    parts = [np.concatenate(frames, axis=1)] if width % size[0] == 0 else frames
    small = [Image.fromarray(part).resize((size[0] * part.shape[1] // width, size[1]), Image.Resampling.BOX)
             for part in parts]  # fmt: skip
    strip = small[0] if len(small) == 1 else Image.fromarray(np.concatenate([*map(np.asarray, small)], axis=1))
    file = io.BytesIO()
    strip.save(file, "WEBP", quality=QUALITY, method=4)
    return file.getvalue()


class Choice:
    """Chooses the clips of a page, and makes each once.

    Args:
        sources: by prompt, its cells.
        order: all prompts, the most interesting first.
    """

    def __init__(self, sources: Mapping[int, Sequence[Source]], order: Sequence[int]) -> None:
        self.sources, self.order = sources, order
        self._exact: dict[int, list[Clip]] = {}
        self._small: dict[tuple[int, int], list[Clip]] = {}

    def within(self, room: int) -> dict[int, list[Clip]]:
        """The clips by prompt, as many as fit into ``room`` bytes.

        If not all clips fit as they are, every prompt gets small ones, and then the first prompts of the order get
        exact ones in their place while there is room. If not even the small ones fit, the last prompts are left out.
        How large the small ones may be is judged by those of the first prompts.
        """
        exact = _take(((prompt, self._make_exact(prompt)) for prompt in self.order), room)
        if len(exact) == len(self.order):
            return exact
        with ThreadPoolExecutor() as threads:  # pictures are read and compressed outside of Python

            def needed(side: int) -> float:
                some = self.order[:SAMPLED]
                return sum(_size(self._make_small(p, side, threads)) for p in some) / len(some) * len(self.order)

            side = next((side for side in SMALL if needed(side) <= SMALL_SHARE * room), SMALL[-1])
            small = _take(((prompt, self._make_small(prompt, side, threads)) for prompt in self.order), room)
        left = room - sum(map(_size, small.values()))
        for prompt, clips in exact.items():
            left -= _size(clips) - _size(small.get(prompt, ()))
            if left < 0:
                break
            small[prompt] = clips
        return small

    def _make_exact(self, prompt: int) -> list[Clip]:
        if prompt not in self._exact:
            self._exact[prompt] = [source.exact() for source in self.sources[prompt]]
        return self._exact[prompt]

    def _make_small(self, prompt: int, side: int, threads: Executor) -> list[Clip]:
        if (prompt, side) not in self._small:
            made = threads.map(lambda source: source.small(side), self.sources[prompt])
            self._small[prompt, side] = [*made]
        return self._small[prompt, side]


def _take(prompts: Iterable[tuple[int, list[Clip]]], room: int) -> dict[int, list[Clip]]:
    """The first prompts that fit into ``room`` bytes together."""
    taken: dict[int, list[Clip]] = {}
    for prompt, clips in prompts:
        room -= _size(clips)
        if room < 0:
            break
        taken[prompt] = clips
    return taken


def _size(clips: Iterable[Clip]) -> int:
    return sum(clip.size for clip in clips)


def object_row(clips: Sequence[np.ndarray]) -> int:
    """The row of pixels that differs most from the background, summed over clips (T, H, W, 3) of one prompt.

    The background of a clip is the median of its pixels.
    """
    total = np.zeros(clips[0].shape[1])
    levels = np.arange(256)
    for frames in clips:
        _, height, _, colours = frames.shape
        # How often each row of pixels has each level: (H, 256) for each colour.
        rows = np.arange(height)[None, :, None] * 256
        for colour in range(colours):
            places = (rows + frames[..., colour]).ravel()
            counts = np.bincount(places, minlength=256 * height).reshape(height, 256)
            total += counts @ np.abs(levels - _median(counts.sum(0)))
    return int(total.argmax())


def _median(counts: np.ndarray) -> float:
    """The median of whole numbers, of which ``counts`` says how often each occurs."""
    reached, half = np.cumsum(counts), int(counts.sum()) / 2
    # Of an even number of values it is the mean of the two in the middle.
    return float(np.searchsorted(reached, half) + np.searchsorted(reached, half, side="right")) / 2


def video_path(cell: Cell) -> Path:
    """Where the MP4 of a cell is."""
    root = cell.folder.parent.parent.parent.resolve()
    return root / "videos" / cell.folder.parent.name / f"{cell.folder.name}.mp4"


def write_video(cell: Cell) -> None:
    """Write the MP4 of a cell, if it is not there."""
    path = video_path(cell)
    if not path.exists():
        manifest = cell.manifest()
        save_video(cell.frames(manifest.frames), path, manifest.fps, quick=True)
