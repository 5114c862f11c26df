"""What a prompt asks for, drawn exactly: the truth beside the metrics, where the world knows it."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import world
from ..core.errors import InputError
from ..metrics.reading import read_clips
from ..metrics.world import SLOWEST, read_prompt
from ..world.scene import STILL, Scene, Thing, inside

BENCH = "world"
LEFT_OPEN = {"shape": "circle", "colour": "red", "size": "large", "motion": "right", "background": "white"}
"""What the truth shows where a prompt does not say it and no clip can be read."""


def draw_truth(prompt: str, clip: np.ndarray) -> np.ndarray | None:
    """The clip that shows exactly what a prompt asks for.

    What the prompt leaves open, its start included, is taken from a clip of the model, so that the two can be compared.

    Args:
        prompt: a caption of one object.
        clip: of the model, uint8 (time, height, width, 3).

    Returns:
        uint8 (time, height, width, 3); None if the world cannot draw the prompt at this size and length.
    """
    if clip.shape != (world.FRAMES, world.SIZE, world.SIZE, 3):
        return None
    try:
        wanted = read_prompt(prompt)
    except InputError:
        return None
    reading = read_clips(clip[None])
    seen = _seen(reading)
    said = {name: getattr(wanted, name) or seen.get(name) or usual for name, usual in LEFT_OPEN.items()}
    motion = said.pop("motion")
    if motion == STILL and wanted.speed and not wanted.motion:
        motion = LEFT_OPEN["motion"]  # what has a speed moves
    background = said.pop("background")
    speed = None if motion == STILL else wanted.speed or seen.get("speed") or "quickly"
    thing = Thing(**said, motion=motion, speed=speed, start=seen.get("start", (world.SIZE / 2, world.SIZE / 2)))
    placed = Thing(**said, motion=motion, speed=speed, start=inside(thing))
    frames = world.render(Scene(background, (placed,)))
    return (frames * 255).round().astype(np.uint8)


def _seen(reading: Any) -> dict[str, Any]:
    """What a clip shows, in the world's words, as far as it can be read."""
    found: dict[str, Any] = {}
    parts = [reading.centroid[0], reading.area[0, :, None], reading.likeness[0], reading.colour[0]]
    first = np.flatnonzero(reading.visible[0] & np.isfinite(np.concatenate(parts, axis=1)).all(1))
    if len(first) == 0:
        return found
    at = int(first[0])
    found["start"] = tuple(map(float, reading.centroid[0, at]))
    for name, palette, colour in (
        ("colour", world.COLOURS, reading.colour[0, at]),
        ("background", world.BACKGROUNDS, reading.background[0, at]),
    ):
        found[name] = min(palette, key=lambda own: float(np.linalg.norm(colour - np.asarray(palette[own]))))
    found["shape"] = world.SHAPES[int(np.argmax(reading.likeness[0, at]))]
    found["size"] = min(world.AREAS, key=lambda own: abs(float(reading.area[0, at]) - world.AREAS[own]))
    if len(first) > 1:
        steps = np.diff(reading.centroid[0, first], axis=0) / np.diff(first)[:, None]
        step = steps.mean(0)
        speed = float(np.linalg.norm(step))
        found["speed"] = min(world.SPEEDS, key=lambda own: abs(speed - world.SPEEDS[own]))
        nearest = max(world.DIRECTIONS, key=lambda own: float(step @ np.asarray(world.DIRECTIONS[own])))
        found["motion"] = STILL if speed < 0.5 * SLOWEST else nearest
    return found
