"""Reads clips of the world from their pixels: the background, and the object's position, area, colour and shape."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from .. import world
from ..core.extras import Later
from .outlines import outline_errors

ndimage = Later("scipy.ndimage", "measuring clips", "study")

SMALLEST = 6  # pixels that a component must have to count as an object
FAINTEST = 0.15  # RGB distance from the background below which a frame shows no object
IN_FRAME = np.zeros((3, 3, 3))  # connects pixels to their neighbours in the same frame, by side or corner
IN_FRAME[1] = 1


@dataclass(frozen=True)
class Reading:
    """What was read from N clips of T frames. Values of the object are NaN in frames without one."""

    background: np.ndarray
    """(N, T, 3), the median colour of each frame."""
    objects: np.ndarray
    """(N, T), how many connected regions of at least SMALLEST px differ from the background."""
    colour: np.ndarray
    """(N, T, 3), the median colour of the largest object's core."""
    centroid: np.ndarray
    """(N, T, 2), x and y in px, weighted by coverage."""
    area: np.ndarray
    """(N, T), px, the sum of coverage."""
    likeness: np.ndarray
    """(N, T, shapes), soft IoU with each of ``world.SHAPES`` at the same centroid and area."""
    outline: np.ndarray
    """(N, T, shapes), px, RMS distance of the object's outline from that of each of ``world.SHAPES``."""
    clipped: np.ndarray
    """(N,), the fraction of values that are exactly 0 or 1."""

    @property
    def visible(self) -> np.ndarray:
        """(N, T), whether a frame shows an object."""
        return self.objects > 0


def read_clips(frames: np.ndarray, chunk: int = 16) -> Reading:
    """Read clips (N, T, H, W, 3) of uint8, or of floats in [0, 1].

    ``chunk`` clips are held in memory as floats at a time; the values do not depend on it.
    """
    if frames.ndim != 5 or frames.shape[-1] != 3:
        raise ValueError(f"clips of shape {frames.shape}: expected (clips, time, height, width, 3)")
    parts = [_read(_as_floats(frames[k : k + chunk])) for k in range(0, len(frames), chunk)]
    return Reading(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Reading)))


def _as_floats(frames: np.ndarray) -> np.ndarray:
    return frames.astype(np.float32) / 255 if frames.dtype == np.uint8 else frames.astype(np.float32)


def _read(clips: np.ndarray) -> Reading:
    """Read float clips; every frame is read by itself."""
    shape = clips.shape[:2]
    frames = clips.reshape(-1, *clips.shape[2:])  # (F, H, W, 3)
    # Background: the median colour. An object is a region whose colours differ from it.
    background = np.median(frames.reshape(len(frames), -1, 3), axis=1)
    difference = frames - background[:, None, None]
    distance = np.linalg.norm(difference, axis=-1)
    strongest = distance.max((1, 2))
    objects, own = _largest(distance > 0.4 * np.where(strongest >= FAINTEST, strongest, np.inf)[:, None, None])
    # The object's colour: the median of the pixels that differ most in the largest region. Another may differ more.
    colour = np.full((len(frames), 3), np.nan)
    for k in np.flatnonzero(objects):
        inside = np.where(own[k], distance[k], 0)
        colour[k] = np.median(frames[k][inside > 0.6 * inside.max()], axis=0)

    # Coverage: 0 at the background's colour, 1 at the object's, linear between; only in and near the largest region.
    axis = np.nan_to_num(colour - background)
    length = np.maximum((axis**2).sum(-1), 1e-12)
    coverage = np.clip(np.einsum("fhwc,fc->fhw", difference, axis) / length[:, None, None], 0, 1)
    coverage *= ndimage.binary_dilation(own, IN_FRAME, iterations=2)
    # Area and centroid: moments of coverage.
    seen = objects > 0
    area = np.where(seen, coverage.sum((1, 2)), np.nan)
    y, x = np.mgrid[: frames.shape[1], : frames.shape[2]] + 0.5
    with np.errstate(invalid="ignore"):
        centroid = np.stack([(x * coverage).sum((1, 2)) / area, (y * coverage).sum((1, 2)) / area], axis=1)
    return Reading(
        background.reshape(*shape, 3),
        objects.reshape(shape),
        colour.reshape(*shape, 3),
        centroid.reshape(*shape, 2),
        area.reshape(shape),
        _likeness(coverage, centroid, area).reshape(*shape, -1),
        np.where(seen[:, None], outline_errors(coverage), np.nan).reshape(*shape, -1),
        ((clips <= 0) | (clips >= 1)).mean((1, 2, 3, 4)),
    )


def _largest(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """From masks (F, H, W): the number of objects (F,), and a mask of each frame's largest one.

    An object is a connected region of at least ``SMALLEST`` px.
    """
    labels, count = ndimage.label(mask, IN_FRAME)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    frame = np.zeros(count + 1, int)
    where = np.nonzero(labels)
    frame[labels[where]] = where[0]
    objects = np.bincount(frame[sizes >= SMALLEST], minlength=len(mask))
    largest = np.zeros(len(mask), int)
    for label in np.argsort(sizes, kind="stable")[1:]:  # the largest is written last
        if sizes[label] >= SMALLEST:
            largest[frame[label]] = label
    return objects, (labels == largest[:, None, None]) & (largest > 0)[:, None, None]


def _likeness(coverage: np.ndarray, centroid: np.ndarray, area: np.ndarray) -> np.ndarray:
    """Soft IoU (F, shapes) of coverage with templates of the same centroid and area; NaN where there is no object."""
    out = np.full((len(coverage), len(world.SHAPES)), np.nan)
    seen = np.flatnonzero(np.isfinite(area))
    if len(seen):
        for k, shape in enumerate(world.SHAPES):
            template = world.coverage(shape, area[seen], centroid[seen], coverage.shape[-1])
            union = np.maximum(template, coverage[seen]).sum((1, 2))
            out[seen, k] = np.minimum(template, coverage[seen]).sum((1, 2)) / union
    return out
