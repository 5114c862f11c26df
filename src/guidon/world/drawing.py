"""Scenes to pixels: signed distances turned into anti-aliased coverage, so that sub-pixel motion is visible."""

import math

import numpy as np

from .scene import AREAS, BACKGROUNDS, COLOURS, FRAMES, SIZE, Scene


def signed_distance(shape: str, area: float | np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance in px from a shape's edge, negative inside; x and y are relative to its centroid."""

    def root(square: float | np.ndarray) -> np.ndarray:
        return np.sqrt(square).astype(np.float32)

    if shape == "circle":
        return np.hypot(x, y) - root(area / math.pi)
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - root(area) / 2
    if shape == "cross":
        arm = root(area / 20)  # half an arm's width; an arm is three times as long as it is wide
        ax, ay = np.abs(x), np.abs(y)
        return np.minimum(np.maximum(ax - 3 * arm, ay - arm), np.maximum(ax - arm, ay - 3 * arm))
    if shape == "triangle":
        inradius = root(area / (3 * math.sqrt(3)))
        return np.maximum(y, 0.5 * (math.sqrt(3) * np.abs(x) - y)) - inradius
    raise ValueError(f"shape {shape!r} cannot be drawn")


def coverage(shape: str, area: float | np.ndarray, centres: np.ndarray, size: int = SIZE) -> np.ndarray:
    """How much of each pixel a shape covers: centres (N, 2) as (x, y) px -> (N, size, size) in [0, 1].

    ``area`` is in px, one for all or (N,).
    """
    axis = np.arange(size, dtype=np.float32) + 0.5
    centres = np.asarray(centres, np.float32)
    x = axis[None, None, :] - centres[:, 0, None, None]
    y = axis[None, :, None] - centres[:, 1, None, None]
    areas = np.asarray(area, np.float64)[..., None, None] if np.ndim(area) else np.float64(area)
    return np.clip(0.5 - signed_distance(shape, areas, x, y), 0, 1)


def render(scene: Scene, frames: int = FRAMES, size: int = SIZE) -> np.ndarray:
    """The clip of a scene: float32 RGB in [0, 1], (frames, size, size, 3)."""
    clip = np.broadcast_to(np.asarray(BACKGROUNDS[scene.background], np.float32), (frames, size, size, 3)).copy()
    for thing in scene.things:
        alpha = coverage(thing.shape, AREAS[thing.size], thing.centroids(frames), size)[..., None]
        clip += alpha * (np.asarray(COLOURS[thing.colour], np.float32) - clip)
    return clip


def foreground(scene: Scene, frames: int = FRAMES, size: int = SIZE) -> np.ndarray:
    """How much of each pixel is not background: (frames, size, size) in [0, 1]."""
    free = np.ones((frames, size, size), np.float32)
    for thing in scene.things:
        free *= 1 - coverage(thing.shape, AREAS[thing.size], thing.centroids(frames), size)
    return 1 - free
