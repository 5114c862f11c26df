"""What can happen in the world: objects with exact attributes moving at constant velocity over a plain background.

Positions are pixels with x to the right and y down, the origin at the frame's top-left corner; a pixel's
centre lies at half-integers. Velocities are pixels per frame. Colours are RGB in [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

SIZE = 64
FRAMES = 16
FPS = 8

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.12, 0.12),
    "green": (0.10, 0.66, 0.20),
    "blue": (0.12, 0.25, 0.92),
    "yellow": (0.95, 0.85, 0.10),
    "purple": (0.66, 0.14, 0.78),
    "cyan": (0.10, 0.76, 0.88),
}
BACKGROUNDS: dict[str, tuple[float, float, float]] = {
    "white": (0.95, 0.95, 0.95),
    "black": (0.06, 0.06, 0.06),
    "gray": (0.50, 0.50, 0.50),
    "brown": (0.42, 0.28, 0.18),
}
AREAS = {"small": 130.0, "large": 280.0}  # square pixels, the same for every shape
STILL = "still"
DIRECTIONS: dict[str, tuple[float, float]] = {
    "right": (1.0, 0.0),
    "up right": (math.sqrt(0.5), -math.sqrt(0.5)),
    "up": (0.0, -1.0),
    "up left": (-math.sqrt(0.5), -math.sqrt(0.5)),
    "left": (-1.0, 0.0),
    "down left": (-math.sqrt(0.5), math.sqrt(0.5)),
    "down": (0.0, 1.0),
    "down right": (math.sqrt(0.5), math.sqrt(0.5)),
}
MOTIONS = (*DIRECTIONS, STILL)
SPEEDS = {"slowly": 1.0, "quickly": 2.0}  # pixels per frame
UNSEEN_SPEED = {"moderately": 1.5}
OPPOSITE = {name: list(DIRECTIONS)[(k + 4) % 8] for k, name in enumerate(DIRECTIONS)} | {STILL: STILL}


def extents(shape: str, area: float) -> tuple[float, float, float, float]:
    """How far a shape reaches from its centroid: (left, right, up, down), px."""
    if shape == "triangle":
        inradius = math.sqrt(area / (3 * math.sqrt(3)))
        return math.sqrt(3) * inradius, math.sqrt(3) * inradius, 2 * inradius, inradius
    reaches = {"circle": math.sqrt(area / math.pi), "square": math.sqrt(area) / 2, "cross": 3 * math.sqrt(area / 20)}
    if shape not in reaches:
        raise ValueError(f"shape {shape!r} is not in the world; valid: {', '.join(SHAPES)}")
    reach = reaches[shape]
    return reach, reach, reach, reach


@dataclass(frozen=True)
class Thing:
    """One object: its captioned attributes and where its centroid is in the first frame."""

    shape: str
    colour: str
    size: str
    motion: str  # a direction, or "still"
    speed: str | None  # None exactly when still
    start: tuple[float, float]

    @property
    def velocity(self) -> tuple[float, float]:
        """Pixels per frame."""
        if self.motion == STILL or self.speed is None:
            return 0.0, 0.0
        speed = (SPEEDS | UNSEEN_SPEED)[self.speed]
        dx, dy = DIRECTIONS[self.motion]
        return speed * dx, speed * dy

    def centroids(self, frames: int = FRAMES) -> np.ndarray:
        """Centroid in every frame: (frames, 2) as (x, y), px."""
        import numpy as np

        return np.asarray(self.start) + np.arange(frames)[:, None] * np.asarray(self.velocity)

    def reversed(self, frames: int = FRAMES) -> Thing:
        """The same object seen backwards in time: it starts where it ended and moves the opposite way."""
        x, y = self.centroids(frames)[-1]
        return replace(self, motion=OPPOSITE[self.motion], start=(float(x), float(y)))


@dataclass(frozen=True)
class Scene:
    """A background and the things on it, nearest last."""

    background: str
    things: tuple[Thing, ...]

    def reversed(self, frames: int = FRAMES) -> Scene:
        return replace(self, things=tuple(thing.reversed(frames) for thing in self.things))


def _starts(thing: Thing, frames: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Lowest and highest start (x, y) that keep the whole object one pixel inside the frame throughout."""
    (x, y), (end_x, end_y) = (map(float, thing.centroids(frames)[k]) for k in (0, -1))
    left, right, up, down = extents(thing.shape, AREAS[thing.size])
    dx, dy = end_x - x, end_y - y
    lowest = 1 + left + max(0.0, -dx), 1 + up + max(0.0, -dy)
    return lowest, (SIZE - 1 - right - max(0.0, dx), SIZE - 1 - down - max(0.0, dy))


def place(
    rng: np.random.Generator, shape: str, size: str, motion: str, speed: str | None, frames: int = FRAMES
) -> tuple[float, float]:
    """A start position, uniform among those that keep the whole object one pixel inside the frame throughout."""
    lowest, highest = _starts(Thing(shape, "red", size, motion, speed, (0.0, 0.0)), frames)
    x, y = (rng.uniform(low, high) for low, high in zip(lowest, highest, strict=True))
    return float(x), float(y)


def inside(thing: Thing, frames: int = FRAMES) -> tuple[float, float]:
    """The start nearest to the thing's own that keeps it one pixel inside the frame throughout."""
    x, y = (min(max(own, low), high) for own, low, high in zip(thing.start, *_starts(thing, frames), strict=True))
    return x, y
