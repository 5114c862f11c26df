"""Captioned clips by index: sample i of a split depends on (seed, i) alone, so any order resumes by construction.

Splits: ``train``; ``L0`` new seeds of what training saw; ``L1`` attribute pairs training never saw together;
``L2`` triples it never saw although it saw every pair in them; ``L3`` a speed it never saw.
Each split walks through all its attribute combinations before it repeats one, so it is balanced.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from .captions import caption
from .scene import (
    AREAS,
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    SPEEDS,
    STILL,
    UNSEEN_SPEED,
    Scene,
    Thing,
    inside,
    place,
)

if TYPE_CHECKING:
    import numpy as np

SPLITS = ("train", "L0", "L1", "L2", "L3")
HELD_OUT_COLOUR_SHAPE = frozenset(
    {("yellow", "circle"), ("purple", "square"), ("cyan", "triangle"), ("green", "cross")}
)
HELD_OUT_SHAPE_MOTION = frozenset(
    {("circle", "up"), ("square", "down left"), ("triangle", "right"), ("cross", "up left"), ("square", STILL)}
)


class Attributes(NamedTuple):
    shape: str
    colour: str
    size: str
    motion: str
    speed: str | None
    background: str


def _holds_pair(a: Attributes) -> bool:
    return (a.colour, a.shape) in HELD_OUT_COLOUR_SHAPE or (a.shape, a.motion) in HELD_OUT_SHAPE_MOTION


def _holds_triple(a: Attributes) -> bool:
    """One triple of (shape, colour, motion) in twelve, chosen by a hash so that the choice never drifts."""
    digest = hashlib.sha256(f"{a.shape}/{a.colour}/{a.motion}".encode()).digest()
    return digest[0] % 12 == 0


@lru_cache
def combinations(split: str) -> tuple[Attributes, ...]:
    """Every attribute combination of a split, each equally likely; "still" weighs as much as any direction."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} does not exist; valid: {', '.join(SPLITS)}")
    found: list[Attributes] = []
    speeds = tuple(UNSEEN_SPEED) if split == "L3" else tuple(SPEEDS)
    for shape, colour, size, motion, speed, background in itertools.product(
        SHAPES, COLOURS, AREAS, MOTIONS, speeds, BACKGROUNDS
    ):
        a = Attributes(shape, colour, size, motion, None if motion == STILL else speed, background)
        pair, triple = _holds_pair(a), _holds_triple(a)
        wanted = {
            "train": not pair and not triple,
            "L0": not pair and not triple,
            "L1": pair,
            "L2": triple and not pair,
            "L3": not pair and not triple and motion != STILL,
        }[split]
        if wanted:
            found.append(a)
    return tuple(found)


@lru_cache
def _held(split: str) -> frozenset[Attributes]:
    return frozenset(combinations(split))


def holds(split: str, scene: Scene) -> bool:
    """Whether a split has the attributes of every thing of a scene."""
    return all(
        Attributes(thing.shape, thing.colour, thing.size, thing.motion, thing.speed, scene.background) in _held(split)
        for thing in scene.things
    )


@lru_cache(maxsize=64)
def _order(split: str, seed: int, epoch: int) -> np.ndarray:
    import numpy as np

    return np.random.default_rng((seed, SPLITS.index(split), epoch)).permutation(len(combinations(split)))


@dataclass(frozen=True)
class Clip:
    """One captioned clip; its frames are drawn when asked for."""

    scene: Scene
    caption: str

    def frames(self) -> np.ndarray:
        """float32 RGB in [0, 1], (time, height, width, 3)."""
        from .drawing import render

        return render(self.scene)


def clip(split: str, seed: int, index: int, *, held_out_templates: bool = False) -> Clip:
    """Clip ``index`` of a split."""
    import numpy as np

    table = combinations(split)
    epoch, position = divmod(index, len(table))
    a = table[_order(split, seed, epoch)[position]]
    rng = np.random.default_rng((seed, SPLITS.index(split), 1 << 32, index))
    start = place(rng, a.shape, a.size, a.motion, a.speed)
    scene = Scene(a.background, (Thing(a.shape, a.colour, a.size, a.motion, a.speed, start),))
    return Clip(scene, caption(scene, rng, held_out=held_out_templates))


@lru_cache(maxsize=4096)
def family(split: str, seed: int, index: int, *, sizes: bool = False) -> tuple[Scene, ...]:
    """The scene of clip ``index`` in every shape, the clip's own first.

    The scenes differ in nothing else, but that a start too near the border for a shape's reach is moved inside. A
    shape that the split does not hold with these attributes is replaced by one that it does.

    Args:
        split, seed, index: as in ``clip``.
        sizes: whether the same four scenes in the other size follow, in the same order.
    """
    scene = clip(split, seed, index).scene
    thing = scene.things[0]
    members: list[Scene] = []
    for size in sorted(AREAS, key=lambda size: size != thing.size)[: 2 if sizes else 1]:
        of_size: list[Scene] = []
        for shape in sorted(SHAPES, key=lambda shape: shape != thing.shape):
            other = replace(thing, shape=shape, size=size)
            of_size.append(replace(scene, things=(replace(other, start=inside(other)),)))
        found = [member for member in of_size if holds(split, member)]
        members += [found[k % len(found)] for k in range(len(SHAPES))]
    return tuple(members)


def mistaken(scene: Scene, rng: np.random.Generator, split: str = "train") -> Scene:
    """A scene of a split with one attribute wrong: its background, or the shape, colour or motion of its thing.

    The wrong scene is of the split too: a combination that is only ever named wrongly would be learnt to be wrong.
    Something to caption, not to render: a thing of another motion may leave the frame.
    """
    (thing,) = scene.things
    speeds = tuple(UNSEEN_SPEED) if split == "L3" else tuple(SPEEDS)
    speed = thing.speed or str(rng.choice(speeds))
    wrong = {
        "background": [replace(scene, background=name) for name in BACKGROUNDS if name != scene.background],
        "shape": [replace(scene, things=(replace(thing, shape=name),)) for name in SHAPES if name != thing.shape],
        "colour": [replace(scene, things=(replace(thing, colour=name),)) for name in COLOURS if name != thing.colour],
        "motion": [
            replace(scene, things=(replace(thing, motion=name, speed=None if name == STILL else speed),))
            for name in MOTIONS
            if name != thing.motion
        ],
    }
    possible = [found for scenes in wrong.values() if (found := [told for told in scenes if holds(split, told)])]
    if not possible:
        raise ValueError(f"no attribute of {thing} can be wrong within {split}")
    scenes = possible[int(rng.integers(len(possible)))]
    return scenes[int(rng.integers(len(scenes)))]


def coverage_table(split: str, seed: int, count: int) -> dict[str, Counter[str]]:
    """How often each attribute value occurs among the first ``count`` clips of a split."""
    tables: dict[str, Counter[str]] = {field: Counter() for field in Attributes._fields}
    for index in range(count):
        scene = clip(split, seed, index).scene
        thing = scene.things[0]
        values = (thing.shape, thing.colour, thing.size, thing.motion, str(thing.speed), scene.background)
        for field, value in zip(Attributes._fields, values, strict=True):
            tables[field][value] += 1
    return tables
