"""Draws again what a sampled clip shows: the same object in the same place, as the renderer draws it.

A model that samples makes errors of drawing: lumps, sizes between the sizes, colours that drift. The world's renderer
makes none, so it can teach the model: the scene is read off the clip and rendered.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ... import world

if TYPE_CHECKING:
    from ...metrics.reading import Reading
    from ...metrics.world import Motion

RULES = 2  # raise it when the rules below, or how clips are read, change: stored pairs are then made again
WOBBLE = 0.5  # px, the largest RMS distance of the object from a straight line
OUTSIDE = 1.0  # px, how far an object may reach beyond the frame
OTHER_SHAPE = 2.0  # the clip shows another shape if the caption's outline is so many times as far as the nearest one
OTHER_SIZE = 1.6  # the clip shows the other size if the area is so many times that of the caption's, or a part of it
OPEN_SIZE = 1.25  # a clip leaves its size open if its area is so many times that of the nearest size, or a part of it
SHOWN = 0.6  # the least share of the frames that show an object, where errors of content are corrected
STRAYS = 1.5  # px, the largest RMS distance of such an object from a straight line
FARTHEST = 8.0  # px that such an object is moved at the most, to be inside the frame
OTHER_COLOUR = 0.3  # RGB, the largest distance from a colour of the palette


@dataclass(frozen=True, eq=False)
class Redrawn:
    """N clips of T frames, drawn again. Rows of clips that cannot be read are zero."""

    frames: np.ndarray
    """(N, T, H, W, 3), float32 in [0, 1]."""
    coverage: np.ndarray
    """How much of each pixel the object covers, (N, T, H, W)."""
    usable: np.ndarray
    """Which clips show one object that moves straight inside the frame, bool (N,)."""


def redraw(frames: np.ndarray, wanted: Sequence[world.Wanted]) -> Redrawn:
    """Read clips, and render each scene again: cleanly, and at the position and velocity at which it was drawn.

    What a clip shows clearly stays, even if its caption asks for something else: an error of content is not an error of
    drawing, and it is guidance's to repair. The caption decides where the clip is ambiguous: between two shapes or two
    sizes. A clip that leaves the size open, as its caption does, is not used.

    Args:
        frames: (N, T, H, W, 3), uint8, or floats in [0, 1].
        wanted: what the captions ask for.
    """
    from ...metrics.reading import read_clips  # they need scipy
    from ...metrics.world import Motion

    reading = read_clips(frames)
    motion = Motion.fit(reading)
    clean = np.zeros(frames.shape, np.float32)
    coverage = np.zeros(frames.shape[:-1], np.float32)
    usable = np.zeros(len(frames), bool)
    for n, want in enumerate(wanted):
        drawn = _scene(reading, motion, n, want)
        if drawn is not None:
            colour, background, alpha = drawn
            clean[n] = background + alpha[..., None] * (colour - background)
            coverage[n], usable[n] = alpha, True
    return Redrawn(clean, coverage, usable)


def _scene(
    reading: Reading, motion: Motion, n: int, want: world.Wanted
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Colour, background and coverage of clip ``n``; None if it cannot be read."""
    if not (reading.objects[n] == 1).all() or not motion.residual[n] <= WOBBLE:
        return None
    # Colours: the nearest of the palettes.
    colour = _nearest(np.median(reading.colour[n], axis=0), world.COLOURS)
    background = _nearest(np.median(reading.background[n], axis=0), world.BACKGROUNDS)
    if colour is None or background is None:
        return None
    # Shape and size: the caption's, unless the clip clearly shows another.
    errors = np.sqrt((reading.outline[n] ** 2).mean(0))
    by_shape = {str(name): float(error) for name, error in zip(world.SHAPES, errors, strict=True)}
    shape = min(by_shape, key=by_shape.__getitem__)
    if want.shape is not None and by_shape[want.shape] < OTHER_SHAPE * by_shape[shape]:
        shape = want.shape
    far = {size: abs(math.log(float(np.median(reading.area[n])) / area)) for size, area in world.AREAS.items()}
    size = min(far, key=far.__getitem__)
    if want.size is not None and far[want.size] < math.log(OTHER_SIZE):
        size = want.size
    elif far[size] > math.log(OPEN_SIZE):
        return None
    # Position: where it was drawn.
    area, time = world.AREAS[size], np.arange(reading.outline.shape[1])
    centres = motion.start[n] + time[:, None] * motion.velocity[n]
    left, right, up, down = world.extents(shape, area)
    lowest, highest = centres.min(0) - np.array([left, up]), centres.max(0) + np.array([right, down])
    if (lowest < -OUTSIDE).any() or (highest > world.SIZE + OUTSIDE).any():
        return None
    return colour, background, world.coverage(shape, area, centres)


def correct(frames: np.ndarray, wanted: Sequence[world.Wanted]) -> list[world.Scene | None]:
    """The scene that each clip shows, with all that its caption asks for; None for a clip that cannot be read.

    Unlike ``redraw``, this corrects errors of content, too. What the caption leaves open is what the clip shows. The
    object passes the middle of its path where it was drawn.

    Args:
        frames: (N, T, H, W, 3), uint8, or floats in [0, 1].
        wanted: what the captions ask for. They name shape, colour, motion and background.
    """
    from ...metrics.reading import read_clips  # they need scipy
    from ...metrics.world import Motion

    reading = read_clips(frames)
    motion = Motion.fit(reading)
    middle = (frames.shape[1] - 1) / 2
    return [_corrected(reading, motion, middle, n, want) for n, want in enumerate(wanted)]


def _corrected(reading: Reading, motion: Motion, middle: float, n: int, want: world.Wanted) -> world.Scene | None:
    """The corrected scene of clip ``n``; None if it cannot be read."""
    if (reading.objects[n] >= 1).mean() < SHOWN or not motion.residual[n] <= STRAYS:
        return None
    if want.shape is None or want.colour is None or want.motion is None or want.background is None:
        return None
    area, velocity = float(np.nanmedian(reading.area[n])), motion.velocity[n]
    size = want.size or min(world.AREAS, key=lambda name: abs(math.log(max(area, 1.0) / world.AREAS[name])))
    fits = min(world.SPEEDS, key=lambda name: abs(float(np.hypot(*velocity)) - world.SPEEDS[name]))
    speed = None if want.motion == world.STILL else want.speed or fits
    thing = world.Thing(want.shape, want.colour, size, want.motion, speed, (0.0, 0.0))
    x, y = motion.start[n] + middle * (velocity - np.array(thing.velocity))
    thing = dataclasses.replace(thing, start=(float(x), float(y)))
    start = world.inside(thing)
    if max(abs(start[0] - x), abs(start[1] - y)) > FARTHEST:
        return None
    return world.Scene(want.background, (dataclasses.replace(thing, start=start),))


def _nearest(found: np.ndarray, palette: dict[str, tuple[float, float, float]]) -> np.ndarray | None:
    """The nearest colour of a palette; None if none is near."""
    colours = np.array(list(palette.values()), np.float32)
    distances = np.linalg.norm(colours - found, axis=1)
    return colours[distances.argmin()] if distances.min() <= OTHER_COLOUR else None
