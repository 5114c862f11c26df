"""What clips of the world show, read off the pixels: background, object, where it is, how large, of which shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from .. import world

SMALLEST = 6  # pixels that a component must have to count as an object
FAINTEST = 0.15  # RGB distance from the background below which nothing is seen
IN_FRAME = np.zeros((3, 3, 3))  # pixels touch their neighbours in the same frame, by side or corner
IN_FRAME[1] = 1


@dataclass(frozen=True)
class Reading:
    """N clips of T frames; what is not visible in a frame is NaN there.

    Attributes:
        background: (N, T, 3), the median of each frame.
        objects: (N, T), how many connected components of at least 6 px differ from the background.
        colour: (N, T, 3), the median of the largest object's core.
        centroid: (N, T, 2), x and y in px, weighted by coverage.
        area: (N, T), px, the sum of coverage.
        likeness: (N, T, shapes), soft IoU with each of ``world.SHAPES`` at the same centroid and area.
        clipped: (N,), the fraction of values that are exactly 0 or 1.
    """

    background: np.ndarray
    objects: np.ndarray
    colour: np.ndarray
    centroid: np.ndarray
    area: np.ndarray
    likeness: np.ndarray
    clipped: np.ndarray

    @property
    def visible(self) -> np.ndarray:
        """(N, T), whether there is an object."""
        return self.objects > 0


def read_clips(frames: np.ndarray, chunk: int = 16) -> Reading:
    """Read clips (N, T, H, W, 3) of uint8, or of floats in [0, 1]; ``chunk`` of them are in memory as floats."""
    if frames.ndim != 5 or frames.shape[-1] != 3:
        raise ValueError(f"clips of shape {frames.shape}: expected (clips, time, height, width, 3)")
    parts = [_read(_as_floats(frames[k : k + chunk])) for k in range(0, len(frames), chunk)]
    return Reading(*(np.concatenate([getattr(part, name) for part in parts]) for name in Reading.__annotations__))


def _as_floats(frames: np.ndarray) -> np.ndarray:
    return frames.astype(np.float32) / 255 if frames.dtype == np.uint8 else frames.astype(np.float32)


def _read(clips: np.ndarray) -> Reading:
    shape = clips.shape[:2]
    frames = clips.reshape(-1, *clips.shape[2:])  # (F, H, W, 3): frames are read alone
    background = np.median(frames.reshape(len(frames), -1, 3), axis=1)
    difference = frames - background[:, None, None]
    distance = np.linalg.norm(difference, axis=-1)
    strongest = distance.max((1, 2))
    seen = strongest >= FAINTEST
    colour = np.full((len(frames), 3), np.nan)
    for k in np.flatnonzero(seen):
        colour[k] = np.median(frames[k][distance[k] > 0.6 * strongest[k]], axis=0)

    objects, own = _largest(distance > 0.4 * np.where(seen, strongest, np.inf)[:, None, None])
    axis = np.nan_to_num(colour - background)
    length = np.maximum((axis**2).sum(-1), 1e-12)
    coverage = np.clip(np.einsum("fhwc,fc->fhw", difference, axis) / length[:, None, None], 0, 1)
    coverage *= ndimage.binary_dilation(own, IN_FRAME, iterations=2)
    seen = objects > 0
    area = np.where(seen, coverage.sum((1, 2)), np.nan)
    y, x = np.mgrid[: frames.shape[1], : frames.shape[2]] + 0.5
    with np.errstate(invalid="ignore"):
        centroid = np.stack([(x * coverage).sum((1, 2)) / area, (y * coverage).sum((1, 2)) / area], axis=1)
    colour[~seen] = np.nan
    return Reading(
        background.reshape(*shape, 3),
        objects.reshape(shape),
        colour.reshape(*shape, 3),
        centroid.reshape(*shape, 2),
        area.reshape(shape),
        _likeness(coverage, centroid, area).reshape(*shape, -1),
        ((clips <= 0) | (clips >= 1)).mean((1, 2, 3, 4)),
    )


def _largest(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of masks (F, H, W): how many components are objects (F,), and the largest one of each frame as a mask."""
    found: Any = ndimage.label(mask, IN_FRAME)
    labels, count = found
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    frame = np.zeros(count + 1, int)
    where = np.nonzero(labels)
    frame[labels[where]] = where[0]
    objects = np.bincount(frame[sizes >= SMALLEST], minlength=len(mask))
    largest = np.zeros(len(mask), int)
    for label in np.argsort(sizes, kind="stable")[1:]:  # the last one written is the largest
        if sizes[label] >= SMALLEST:
            largest[frame[label]] = label
    return objects, (labels == largest[:, None, None]) & (largest > 0)[:, None, None]


def _likeness(coverage: np.ndarray, centroid: np.ndarray, area: np.ndarray) -> np.ndarray:
    """Soft IoU (F, shapes) of masks with templates of the same centroid and area; NaN where there is no object."""
    out = np.full((len(coverage), len(world.SHAPES)), np.nan)
    seen = np.flatnonzero(np.isfinite(area))
    if len(seen):
        for k, shape in enumerate(world.SHAPES):
            template = world.coverage(shape, area[seen], centroid[seen], coverage.shape[-1])
            union = np.maximum(template, coverage[seen]).sum((1, 2))
            out[seen, k] = np.minimum(template, coverage[seen]).sum((1, 2)) / union
    return out
