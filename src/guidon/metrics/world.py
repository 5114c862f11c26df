"""The bench of the synthetic world: alignment with the caption, steadiness over time, and image quality.

Every metric is computed from pixels alone and compared with the caption. An object that cannot be read fails the
alignment metrics, and the metrics that need it are NaN. No clip is left out.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from .. import world
from ..core.errors import InputError
from .metric import CLIPPED, SHARE, UNSAID, Bench, Examples, Goal, Metric, Values, named
from .reading import Reading, read_clips

SLOWEST = min(world.SPEEDS.values())
SPEEDS = world.SPEEDS | world.UNSEEN_SPEED
BRIEFEST = 4  # frames in which an object must be seen for its motion to be measured
PIXELS = "px"
_UNSEEN = f"the object is visible in fewer than {BRIEFEST} frames"
METRICS = named(
    Metric(
        "joint", "alignment", SHARE, (0, 1), "higher",
        "one_object, colour, shape, direction, background and size are all right",
        label="all as asked", words="of clips show all that was asked",
    ),
    Metric(
        "one_object", "alignment", SHARE, (0, 1), "higher", "every frame shows exactly one object",
        label="one object", words="of clips show exactly one object in every frame",
    ),
    Metric(
        "colour", "alignment", SHARE, (0, 1), "higher",
        "the palette's colour nearest to the object's is the caption's", UNSAID,
        label="right colour", words="of clips show the object in the right colour",
    ),
    Metric(
        "shape", "alignment", SHARE, (0, 1), "higher",
        "the shape template of the highest IoU with the object is the caption's, and outline_error is at most 0.25 px",
        UNSAID,
        label="right shape", words="of clips show the right shape",
    ),
    Metric(
        "direction", "alignment", SHARE, (0, 1), "higher",
        "the velocity is within 22.5 degrees of the caption's and at least half as fast; or the object is still, "
        "where the caption says so", UNSAID,
        label="right motion", words="of clips move as asked",
    ),
    Metric(
        "background", "alignment", SHARE, (0, 1), "higher",
        "the palette's colour nearest to the background is the caption's", UNSAID,
        label="right background", words="of clips have the right background",
    ),
    Metric(
        "size", "alignment", SHARE, (0, 1), "higher",
        "the object's area is that of the caption's size, within a factor of 1.2", UNSAID,
        label="right size", words="of clips show the object in the right size",
    ),
    Metric(
        "law_residual", "temporal", PIXELS, (0, math.inf), "lower",
        "RMS distance of the centroid from the best line of constant velocity", _UNSEEN,
        label="unsteady path", words="how far the object strays from a straight, steady path",
    ),
    Metric(
        "teleport", "temporal", PIXELS, (0, math.inf), "lower",
        "the largest second difference of the centroid over frames", "no three frames in a row show the object",
        label="largest jump", words="the object's largest sudden jump",
    ),
    Metric(
        "colour_drift", "temporal", "RGB", (0, math.sqrt(3)), "lower",
        "the largest distance of the object's colour from that in the first frame that shows it", _UNSEEN,
        label="colour drift", words="how much the object's colour changes during the clip",
    ),
    Metric(
        "area_cv", "temporal", "ratio", (0, math.inf), "lower",
        "standard deviation of the object's area over its mean", _UNSEEN,
        label="pulsing size", words="how much the object's size changes during the clip",
    ),
    Metric(
        "shape_flips", "temporal", SHARE, (0, 1), "lower",
        "share of consecutive frames whose shapes differ", _UNSEEN,
        label="shape flips", words="of consecutive frames show two shapes",
    ),
    Metric(
        "background_flicker", "temporal", "RGB", (0, math.sqrt(3)), "lower",
        "mean distance between the backgrounds of consecutive frames",
        label="background flicker", words="how much the background changes from frame to frame",
    ),
    Metric(
        "vanished", "temporal", SHARE, (0, 1), "lower", "share of frames without an object",
        label="object missing", words="of frames show no object",
    ),
    Metric(
        "speed", "temporal", "px/frame", (0, math.inf), None,
        "speed of the fitted motion; read it beside the others, for a still clip looks steady", _UNSEEN,
        label="speed", words="how fast the object moves",
    ),
    Metric(
        "outline_error", "quality", PIXELS, (0, math.inf), "lower",
        "RMS distance of the object's outline from the nearest outline of the caption's shape, or of any shape if the "
        "caption names none", _UNSEEN,
        label="ragged outline", words="how far the object's outline is from a perfect one",
    ),
    Metric(
        "fit_psnr", "quality", "dB", (0, math.inf), "higher",
        "PSNR between the clip and the scene that was read from it, rendered again", _UNSEEN,
        label="cleanness", words="how close the clip is to a perfect drawing of what it shows",
    ),
    CLIPPED,
    Metric(
        "chroma", "quality", "ratio", (0, math.inf), None,
        "the object's chroma over that of the caption's colour; above 1 is oversaturated",
        f"{_UNSEEN}, or the caption names no colour",
        label="colour strength", words="how strong the object's colour is; 1 is as asked, above 1 is too strong",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Demands:
    """What the alignment metrics ask of a clip."""

    joint: tuple[str, ...] = ("one_object", "colour", "shape", "direction", "background", "size")
    """The metrics that must all be 1 for joint."""
    outline: float = 0.25
    """The largest outline_error of a right shape, px. People see a circle as round up to about there."""
    size: float = 1.2
    """The largest factor between the object's area and that of the caption's size. The two sizes are 2.15 apart."""


NOW = Demands()


@dataclass(frozen=True)
class Motion:
    """Motion at constant velocity, fitted to N clips by least squares over the frames that show the object.

    All values are NaN where fewer than ``BRIEFEST`` frames show it.
    """

    start: np.ndarray
    """(N, 2), px, the position in the first frame."""
    velocity: np.ndarray
    """(N, 2), px per frame."""
    residual: np.ndarray
    """(N,), px, RMS distance of the centroids from the line."""

    @classmethod
    def fit(cls, reading: Reading) -> Motion:
        """The motion in clips that were read."""
        seen = reading.visible.astype(float)
        count = seen.sum(1)
        enough = count >= BRIEFEST
        time = np.arange(seen.shape[1])
        centroid = np.nan_to_num(reading.centroid)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean_time = (seen * time).sum(1) / count
            mean = (seen[..., None] * centroid).sum(1) / count[:, None]
            offset = (time - mean_time[:, None]) * seen  # (N, T)
            velocity = np.einsum("nt,ntd->nd", offset, centroid) / (offset**2).sum(1)[:, None]
            start = mean - velocity * mean_time[:, None]
            line = start[:, None] + velocity[:, None] * time[:, None]
            squared = ((centroid - line) ** 2).sum(-1)
            residual = np.sqrt((squared * seen).sum(1) / count)
        for part in (start, velocity, residual):
            part[~enough] = np.nan
        return cls(start, velocity, residual)


def measure(frames: np.ndarray, wanted: Sequence[world.Wanted], demands: Demands = NOW) -> Values:
    """All metrics of clips, each measured against what its caption asks for.

    Args:
        frames: (N, T, H, W, 3), uint8, or floats in [0, 1].
        wanted: N captions as ``world.read_caption`` reads them. An attribute that a caption does not name is not
            judged: its metric is NaN, and ``joint`` ignores it.
        demands: what the alignment metrics ask for.

    Returns:
        (N,) for each of ``METRICS``.
    """
    if len(frames) != len(wanted):
        raise InputError(f"{len(frames)} clips and {len(wanted)} captions: give one caption for each clip")
    reading = read_clips(frames)
    motion = Motion.fit(reading)
    outline = _outline_error(reading, wanted)
    aligned = _alignment(reading, motion, outline, wanted, demands)
    joint = np.all([np.where(np.isnan(aligned[name]), 1.0, aligned[name]) == 1 for name in demands.joint], axis=0)
    values = {
        "joint": joint.astype(float),
        **aligned,
        **_temporal(reading, motion),
        "outline_error": outline,
        **_quality(frames, reading, motion, wanted),
    }
    return {name: values[name] for name in METRICS}


def starts(frames: np.ndarray) -> np.ndarray:
    """Where the object of each clip starts, (N, 2) px, by its fitted motion; NaN where it cannot be read."""
    return Motion.fit(read_clips(frames)).start


def start_spread(positions: np.ndarray, thing: world.Thing) -> float:
    """How varied the start positions of a prompt's samples are: 1 as in the world, 0 if all are equal.

    It is the RMS distance of the positions from their mean, divided by its value in the world. In the world, start
    positions are uniform over those where the whole object stays inside the frame during the clip.

    Args:
        positions: (K, 2), px; rows with NaN are left out.
        thing: the object that the prompt asks for.

    Returns:
        The ratio; NaN for fewer than two positions.
    """
    positions = positions[np.isfinite(positions).all(1)]
    if len(positions) < 2:
        return math.nan
    dx, dy = (abs(float(d)) for d in np.asarray(thing.velocity) * (world.FRAMES - 1))
    left, right, up, down = world.extents(thing.shape, world.AREAS[thing.size])
    free = world.SIZE - 2 - (left + right) - dx, world.SIZE - 2 - (up + down) - dy
    expected = math.sqrt(sum(max(0.0, side) ** 2 for side in free) / 12)
    return float(np.sqrt(positions.var(axis=0, ddof=1).sum())) / expected


def _outline_error(reading: Reading, wanted: Sequence[world.Wanted]) -> np.ndarray:
    """The RMS over frames (N,) of the outline's distance from the caption's shape, or from the nearest shape."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # clips without an object
        by_shape = np.sqrt(np.nanmean(reading.outline**2, axis=1))
        nearest = np.fmin.reduce(by_shape, axis=1)
    asked = [None if want.shape is None else world.SHAPES.index(want.shape) for want in wanted]
    error = np.array([nearest[n] if k is None else by_shape[n, k] for n, k in enumerate(asked)])
    return np.where(reading.visible.sum(1) >= BRIEFEST, error, np.nan)


def _alignment(
    reading: Reading, motion: Motion, outline: np.ndarray, wanted: Sequence[world.Wanted], demands: Demands
) -> Values:
    # Summarise each clip over its frames.
    with np.errstate(all="ignore"):
        colour = _nanmedian(reading.colour)
        area = _nanmedian(reading.area)
        likeness = np.nansum(reading.likeness, axis=1)
    background = np.median(reading.background, axis=1)
    seen = reading.visible.sum(1) >= BRIEFEST
    # Colours: the nearest one of the palette.
    palettes = {"colour": (world.COLOURS, colour), "background": (world.BACKGROUNDS, background)}
    out = {"one_object": (reading.objects == 1).all(1).astype(float)}
    for name, (palette, found) in palettes.items():
        names, values = list(palette), np.array(list(palette.values()))
        closest = np.argmin(np.nan_to_num(((found[:, None] - values) ** 2).sum(-1), nan=np.inf), axis=1)
        out[name] = _compared([names[k] for k in closest], [getattr(want, name) for want in wanted])
    # Shape, direction and size.
    out["shape"] = _compared([world.SHAPES[k] for k in likeness.argmax(1)], [want.shape for want in wanted])
    out["shape"] *= (outline <= demands.outline) | math.isinf(demands.outline)
    out["direction"] = np.array([_moves(v, want) for v, want in zip(motion.velocity, wanted, strict=True)])
    sizes = np.array(list(world.AREAS.values()))
    nearest_size = np.argmin(np.abs(np.log(np.nan_to_num(area, nan=1.0)[:, None] / sizes)), axis=1)
    out["size"] = _compared([list(world.AREAS)[k] for k in nearest_size], [want.size for want in wanted])
    with np.errstate(invalid="ignore"):
        out["size"] *= np.abs(np.log(area / sizes[nearest_size])) <= math.log(demands.size)
    for name in ("colour", "shape", "direction", "size"):
        out[name][~seen & ~np.isnan(out[name])] = 0.0  # an object that cannot be read fails
    return out


def _nanmedian(values: np.ndarray) -> np.ndarray:
    """The median over frames, axis 1; NaN, without a warning, where no frame has a value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmedian(values, axis=1)


def _compared(found: Sequence[str], wanted: Sequence[str | None]) -> np.ndarray:
    """1 where found and wanted are equal, 0 where they differ, NaN where nothing is wanted."""
    return np.array(
        [math.nan if want is None else float(seen == want) for seen, want in zip(found, wanted, strict=True)]
    )


def _moves(velocity: np.ndarray, wanted: world.Wanted) -> float:
    """1 if the motion is within 22.5 degrees of the caption's direction and at least half as fast; else 0.

    For a caption of a still object: 1 if the speed is below half of the slowest speed. NaN if the caption names no
    motion.
    """
    if wanted.motion is None:
        return math.nan
    speed = float(np.hypot(*velocity))
    if wanted.motion == world.STILL:
        return float(speed < 0.5 * SLOWEST)
    asked = SPEEDS.get(wanted.speed or "", SLOWEST)
    cosine = float(velocity @ np.asarray(world.DIRECTIONS[wanted.motion])) / max(speed, 1e-9)
    return float(speed >= 0.5 * asked and cosine >= math.cos(math.radians(22.5)))


def _temporal(reading: Reading, motion: Motion) -> Values:
    seen = reading.visible.sum(1) >= BRIEFEST
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # slices that are all NaN
        # Position, colour, area and shape over time.
        bends = np.linalg.norm(np.diff(reading.centroid, n=2, axis=1), axis=-1)
        first = np.argmax(reading.visible, axis=1)
        origin = np.take_along_axis(reading.colour, first[:, None, None], axis=1)
        drift = np.nanmax(np.linalg.norm(reading.colour - origin, axis=-1), axis=1)
        area_cv = np.nanstd(reading.area, axis=1) / np.nanmean(reading.area, axis=1)
        best = np.argmax(np.nan_to_num(reading.likeness, nan=-1.0), axis=-1)
        pairs = reading.visible[:, 1:] & reading.visible[:, :-1]
        flips = ((best[:, 1:] != best[:, :-1]) & pairs).sum(1) / pairs.sum(1)
        teleport = np.nanmax(bends, axis=1) if bends.shape[1] else np.full(len(bends), np.nan)
    for part in (drift, area_cv, flips):
        part[~seen] = np.nan
    return {
        "law_residual": motion.residual,
        "teleport": teleport,
        "colour_drift": drift,
        "area_cv": area_cv,
        "shape_flips": flips,
        "background_flicker": np.linalg.norm(np.diff(reading.background, axis=1), axis=-1).mean(1),
        "vanished": 1 - reading.visible.mean(1),
        "speed": np.hypot(motion.velocity[:, 0], motion.velocity[:, 1]),
    }


def _quality(frames: np.ndarray, reading: Reading, motion: Motion, wanted: Sequence[world.Wanted]) -> Values:
    background = np.median(reading.background, axis=1)
    colour, area = _nanmedian(reading.colour), _nanmedian(reading.area)
    with np.errstate(all="ignore"):
        shape = np.nansum(reading.likeness, axis=1).argmax(1)
    # Render the scene that was read, and compare it with the clip.
    time = np.arange(frames.shape[1])[:, None]
    psnr, chroma = np.full(len(frames), np.nan), np.full(len(frames), np.nan)
    for k in np.flatnonzero(np.isfinite(motion.residual)).tolist():
        centres = motion.start[k] + time * motion.velocity[k]
        alpha = world.coverage(world.SHAPES[shape[k]], float(area[k]), centres, frames.shape[-2])[..., None]
        drawn = background[k] + alpha * (colour[k] - background[k])
        clip = frames[k] / 255.0 if frames.dtype == np.uint8 else frames[k]
        psnr[k] = -10 * math.log10(max(float(((clip - drawn) ** 2).mean()), 1e-10))
        asked = wanted[k].colour
        if asked is not None:
            chroma[k] = np.ptp(colour[k]) / np.ptp(np.array(world.COLOURS[asked]))
    return {"fit_psnr": psnr, "clipped": reading.clipped, "chroma": chroma}


@cache
def _reader() -> world.PromptReader:
    """The reader of prompts. How long a prompt may be is a matter of the model."""
    return world.PromptReader(most_words=1_000_000)


def read_prompt(prompt: str) -> world.Wanted:
    """What a prompt asks for, as models of the world read it.

    A prompt that they refuse is read word by word, as ``world.read_caption`` does.

    Raises:
        InputError: it names nothing of the world, or two values of one attribute.
    """
    read = _reader()(prompt)
    if read.refusal is None:
        return read.asks
    try:
        return world.read_caption(prompt)
    except ValueError as error:
        raise InputError(str(error)) from None


def _check_prompt(prompt: str) -> None:
    read_prompt(prompt)


def measure_captioned(frames: np.ndarray, captions: Sequence[str], demands: Demands = NOW) -> Values:
    """``measure`` for captions as texts.

    Raises:
        InputError: the clips do not have the world's size, are too short for a motion to be measured, or a caption
            names nothing of the world.
    """
    length, height, width = frames.shape[1:4]
    if (height, width) != (world.SIZE, world.SIZE) or length < BRIEFEST:
        raise InputError(
            f"the video is {width}x{height}, {length} frames: captions are judged on the world's "
            f"{world.SIZE}x{world.SIZE} videos of at least {BRIEFEST} frames"
        )
    return measure(frames, [read_prompt(caption) for caption in captions], demands)


def _caption(split: str, seed: int, index: int) -> str:
    return world.clip(split, seed, index).caption


def _frames(split: str, seed: int, index: int) -> np.ndarray:
    return world.clip(split, seed, index).frames()


def _over_seeds(split: str, seed: int, index: int, samples: np.ndarray) -> dict[str, float]:
    (thing,) = world.clip(split, seed, index).scene.things
    return {"start_spread": start_spread(starts(samples), thing)}


BENCH = Bench(
    name="world",
    metrics=METRICS,
    measure=measure_captioned,
    shown=(
        "joint", "one_object", "colour", "shape", "direction", "background", "size", "outline_error", "law_residual",
        "colour_drift", "area_cv", "background_flicker", "speed", "chroma",
    ),
    primary="joint",
    matched=("joint", "chroma", "colour_drift", "law_residual"),
    guarded=("joint", "law_residual", "area_cv", "colour_drift", "fit_psnr"),
    # a fiftieth of a pixel; one percent of the object's area; less than three levels of 255
    margins={"law_residual": 0.02, "area_cv": 0.01, "colour_drift": 0.01},
    fronts=(("joint", "colour_drift"), ("joint", "law_residual")),
    watched=("joint", "colour", "shape", "direction", "size", "outline_error", "law_residual"),
    check_prompt=_check_prompt,
    examples=Examples(world.SPLITS, "L0", _caption, _frames, _over_seeds),
    goal=Goal(
        keep="joint",
        lower={
            "oversaturation": lambda values: np.abs(values["chroma"] - 1),
            "colour_drift": lambda values: values["colour_drift"],
            "outline_error": lambda values: values["outline_error"],
        },
    ),
)  # fmt: skip
