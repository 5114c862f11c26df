"""Scenes to sentences: a small grammar with paraphrases and synonyms, some templates of which training never sees.

Size and speed may go unsaid; shape, colour, motion and background never do. Start positions are never captioned.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .scene import AREAS, BACKGROUNDS, COLOURS, DIRECTIONS, SHAPES, SPEEDS, STILL, UNSEEN_SPEED, Scene, Thing

if TYPE_CHECKING:
    import numpy as np

# canonical word -> what else people say; a tokenizer reads every spelling as the canonical word
SYNONYMS: dict[str, tuple[str, ...]] = {
    "circle": ("ball", "disk", "disc", "dot"),
    "square": ("box", "block"),
    "triangle": ("wedge",),
    "cross": ("plus",),
    "red": ("scarlet", "crimson"),
    "green": (),
    "blue": (),
    "yellow": (),
    "purple": ("violet", "magenta"),
    "cyan": ("turquoise", "teal"),
    "white": (),
    "black": (),
    "gray": ("grey",),
    "brown": (),
    "small": ("little", "tiny"),
    "large": ("big", "huge"),
    "left": ("leftward", "leftwards"),
    "right": ("rightward", "rightwards"),
    "up": ("upward", "upwards"),
    "down": ("downward", "downwards"),
    "slowly": ("slow", "gently"),
    "quickly": ("quick", "fast", "rapidly"),
    "moderately": ("moderate",),
    "moves": ("move", "moving", "drifts", "drifting", "slides", "sliding", "travels", "travelling", "traveling",
              "glides", "gliding", "goes", "going", "floats", "floating"),
    "stays": ("stay", "staying", "remains", "remaining", "stands", "standing", "rests", "resting"),
    "still": ("motionless", "stationary", "put"),
    "background": ("backdrop",),
    "toward": ("towards",),
}  # fmt: skip
PLAIN_WORDS = ("a", "an", "the", "on", "in", "to", "and", "against", "it", "that", "there", "is", "does", "not", "with",
               "of", "we", "see", "video", "over", "front", "which", "while", "diagonally")  # fmt: skip

TEMPLATES = (
    "a {thing} {motion} on a {background} background",
    "a {thing} {motion} against a {background} backdrop",
    "on a {background} background, a {thing} {motion}",
    "{thing} {motion}, {background} background",
    "there is a {thing} that {motion} on a {background} background",
    "the {thing} {motion} over a {background} background",
)
HELD_OUT_TEMPLATES = (
    "a video of a {thing} which {motion} over a {background} backdrop",
    "we see a {thing} on a {background} background and it {motion}",
)
MOVES = ("moves", "drifts", "slides", "travels", "glides", "goes")
RESTS = ("stays still", "is still", "does not move", "remains stationary", "stands still", "is motionless")


def vocabulary() -> dict[str, str]:
    """Every word of the world and the canonical word it is read as."""
    words = {word: word for word in (*SYNONYMS, *PLAIN_WORDS)}
    return words | {other: word for word, others in SYNONYMS.items() for other in others}


def _said(word: str, rng: np.random.Generator | None) -> str:
    """A word or one of its synonyms."""
    choices = (word, *SYNONYMS.get(word, ()))
    return word if rng is None else choices[rng.integers(len(choices))]


def direction(motion: str, rng: np.random.Generator | None = None) -> str:
    """A direction as captions say it, such as "up and to the left"; the plainest way without ``rng``."""
    words = motion.split()
    if len(words) == 2:
        vertical, side = words
        ways = (f"{vertical} and to the {side}", f"{vertical} and {side}", f"diagonally {vertical} {side}",
                f"{vertical}-{side}")  # fmt: skip
    elif motion in ("left", "right"):
        ways = (motion, f"to the {motion}", f"toward the {motion}", f"{motion}wards")
    else:
        ways = (motion, f"{motion}wards")
    return ways[0] if rng is None else ways[rng.integers(len(ways))]


def _phrases(thing: Thing, rng: np.random.Generator | None, say_size: bool, say_speed: bool) -> dict[str, str]:
    noun = f"{_said(thing.colour, rng)} {_said(thing.shape, rng)}"
    if say_size:
        noun = f"{_said(thing.size, rng)} {noun}"
    if thing.motion == STILL:
        motion = RESTS[0] if rng is None else RESTS[rng.integers(len(RESTS))]
    else:
        verb = MOVES[0] if rng is None else MOVES[rng.integers(len(MOVES))]
        motion = f"{verb} {direction(thing.motion, rng)}"
        if say_speed and thing.speed is not None:
            motion += f" {thing.speed}"
    return {"thing": noun, "motion": motion}


def plain_caption(scene: Scene, *, size: bool = True, speed: bool = True) -> str:
    """The one canonical sentence of a scene, with or without its size and speed."""
    things = [_phrases(thing, None, size, speed) for thing in scene.things]
    subject = " and ".join(f"a {t['thing']} {t['motion']}" for t in things)
    return f"{subject} on a {scene.background} background"


def caption(scene: Scene, rng: np.random.Generator, *, held_out: bool = False) -> str:
    """A paraphrase of a scene; size and speed are each said half of the time.

    ``held_out`` takes its sentence from the templates that training never sees.
    """
    say_size, say_speed = (bool(flag) for flag in rng.integers(2, size=2))
    first, *rest = (_phrases(thing, rng, say_size, say_speed) for thing in scene.things)
    templates = HELD_OUT_TEMPLATES if held_out else TEMPLATES
    if rest:  # sentences with several subjects keep one order, so that attributes bind to their nouns
        subject = " and ".join(f"a {t['thing']} {t['motion']}" for t in (first, *rest))
        return f"{subject} on a {_said(scene.background, rng)} background"
    return templates[rng.integers(len(templates))].format(**first, background=_said(scene.background, rng))


@dataclass(frozen=True)
class Wanted:
    """What a caption asks for; None where it says nothing."""

    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    motion: str | None = None
    speed: str | None = None
    background: str | None = None


def read_caption(text: str) -> Wanted:
    """What a caption of one object asks for, in the world's canonical words.

    Raises:
        ValueError: it asks for two values of one attribute, or for nothing that the world has.
    """
    canonical = vocabulary()
    text = re.sub(r"\b(left|right|up|down)wards?\b", r"\1", text.lower())
    words = [canonical.get(word, word) for word in re.findall(r"[a-z]+", text)]

    def one_of(names: object, what: str) -> str | None:
        found = sorted({word for word in words if word in names})  # type: ignore[operator]
        if len(found) > 1:
            raise ValueError(f"{text!r} asks for {' and '.join(found)}: a caption of one object has one {what}")
        return found[0] if found else None

    sides, heights = one_of(("left", "right"), "direction"), one_of(("up", "down"), "direction")
    motion = " ".join(part for part in (heights, sides) if part) or None
    if STILL in words or {"not", "moves"} <= set(words):
        if motion:
            raise ValueError(f"{text!r} asks for stillness and motion {motion}")
        motion = STILL
    wanted = Wanted(
        one_of(SHAPES, "shape"),
        one_of(COLOURS, "colour"),
        one_of(AREAS, "size"),
        motion,
        one_of((*SPEEDS, *UNSEEN_SPEED), "speed"),
        one_of(BACKGROUNDS, "background"),
    )
    if wanted == Wanted():
        raise ValueError(
            f"{text!r} asks for nothing that the world has: name a shape ({', '.join(SHAPES)}), a colour, "
            f"a direction ({', '.join(DIRECTIONS)}) or a background"
        )
    return wanted
