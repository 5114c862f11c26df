"""The metrics of the world: does a clip show what its caption asks for, steadily, and in clean pixels?

Every metric is computed from pixels alone and compared with the caption. What cannot be read counts as a failed
alignment, and is NaN elsewhere: never left out, never guessed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .. import world
from ..core.errors import InputError, nearest
from .reading import Reading, read_clips

SLOWEST = min(world.SPEEDS.values())
SPEEDS = world.SPEEDS | world.UNSEEN_SPEED
BRIEFEST = 4  # frames in which an object must be seen for its motion to be measured


@dataclass(frozen=True)
class Metric:
    """What a number means. ``better`` is the direction in which it improves, None for what is only described."""

    name: str
    kind: Literal["alignment", "temporal", "quality"]
    unit: str
    range: tuple[float, float]
    better: Literal["higher", "lower"] | None
    meaning: str
    undefined: str = "never"


SHARE, PIXELS = "share", "px"
_UNSEEN = f"the object is visible in fewer than {BRIEFEST} frames"
METRICS = {
    metric.name: metric
    for metric in (
        Metric("joint", "alignment", SHARE, (0, 1), "higher", "all of the alignment metrics below but size"),
        Metric("one_object", "alignment", SHARE, (0, 1), "higher", "exactly one object in every frame"),
        Metric("colour", "alignment", SHARE, (0, 1), "higher", "the palette's nearest colour is the one asked for"),
        Metric("shape", "alignment", SHARE, (0, 1), "higher", "the template of best IoU is the one asked for"),
        Metric(
            "direction", "alignment", SHARE, (0, 1), "higher",
            "fitted velocity within 22.5 degrees and at least half the speed asked for, or still",
        ),
        Metric("background", "alignment", SHARE, (0, 1), "higher", "the palette's nearest is the one asked for"),
        Metric("size", "alignment", SHARE, (0, 1), "higher", "area nearest to the size asked for, where one was"),
        Metric(
            "law_residual", "temporal", PIXELS, (0, math.inf), "lower",
            "RMS distance of the centroid from its best line at constant velocity", _UNSEEN,
        ),
        Metric(
            "teleport", "temporal", PIXELS, (0, math.inf), "lower",
            "the largest second difference of the centroid", "no three frames in a row show the object",
        ),
        Metric(
            "colour_drift", "temporal", "RGB", (0, math.sqrt(3)), "lower",
            "the largest distance of the object's colour from that of the first frame that shows it", _UNSEEN,
        ),
        Metric(
            "area_cv", "temporal", "ratio", (0, math.inf), "lower", "standard deviation of area over its mean", _UNSEEN
        ),
        Metric(
            "shape_flips", "temporal", SHARE, (0, 1), "lower", "consecutive frames that show different shapes", _UNSEEN
        ),
        Metric(
            "background_flicker", "temporal", "RGB", (0, math.sqrt(3)), "lower",
            "mean distance of consecutive frames' backgrounds",
        ),
        Metric("vanished", "temporal", SHARE, (0, 1), "lower", "frames without an object"),
        Metric(
            "speed", "temporal", "px/frame", (0, math.inf), None,
            "of the fitted velocity, to be shown beside the others: stillness looks steady", _UNSEEN,
        ),
        Metric(
            "fit_psnr", "quality", "dB", (0, math.inf), "higher",
            "PSNR to the scene that was read off the clip, drawn anew", _UNSEEN,
        ),
        Metric("clipped", "quality", SHARE, (0, 1), "lower", "values that are exactly black or full"),
        Metric(
            "chroma", "quality", "ratio", (0, math.inf), None,
            "the object's chroma over that of the colour asked for: above 1 is oversaturated", _UNSEEN,
        ),
    )
}  # fmt: skip
ALIGNMENT = ("one_object", "colour", "shape", "direction", "background")


@dataclass(frozen=True)
class Motion:
    """The law of motion fitted to N clips by least squares over the frames that show the object.

    Attributes:
        start, velocity: (N, 2), px and px per frame, NaN where too few frames show it.
        residual: (N,), RMS distance from the line, px.
    """

    start: np.ndarray
    velocity: np.ndarray
    residual: np.ndarray

    @classmethod
    def fit(cls, reading: Reading) -> Motion:
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


def measure(frames: np.ndarray, wanted: Sequence[world.Wanted]) -> dict[str, np.ndarray]:
    """Every metric of clips (N, T, H, W, 3), uint8 or floats in [0, 1], against what each was asked for: (N,) each.

    A clip whose caption leaves an attribute unsaid is not judged on it; ``size`` is then NaN.
    """
    if len(frames) != len(wanted):
        raise InputError(f"{len(frames)} clips and {len(wanted)} captions do not belong together")
    reading = read_clips(frames)
    motion = Motion.fit(reading)
    aligned = _alignment(reading, motion, wanted)
    joint = np.all([np.where(np.isnan(aligned[name]), 1.0, aligned[name]) == 1 for name in ALIGNMENT], axis=0)
    values = {
        "joint": joint.astype(float),
        **aligned,
        **_temporal(reading, motion),
        **_quality(frames, reading, motion, wanted),
    }
    return {name: values[name] for name in METRICS}


def starts(frames: np.ndarray) -> np.ndarray:
    """Where the object of each clip starts, (N, 2) px, by its fitted motion; NaN where it cannot be read."""
    return Motion.fit(read_clips(frames)).start


def start_spread(positions: np.ndarray, thing: world.Thing) -> float:
    """Spread of a prompt's start positions (K, 2) over seeds, against that of the truth: 1 is as varied, 0 collapsed.

    Each is the RMS distance from the mean; the truth is uniform where the whole object stays inside the frame. NaN for
    fewer than two positions that can be read.
    """
    positions = positions[np.isfinite(positions).all(1)]
    if len(positions) < 2:
        return math.nan
    dx, dy = (abs(float(d)) for d in np.asarray(thing.velocity) * (world.FRAMES - 1))
    left, right, up, down = world.extents(thing.shape, world.AREAS[thing.size])
    free = world.SIZE - 2 - (left + right) - dx, world.SIZE - 2 - (up + down) - dy
    expected = math.sqrt(sum(max(0.0, side) ** 2 for side in free) / 12)
    return float(np.sqrt(positions.var(axis=0, ddof=1).sum())) / expected


def find_metric(name: str) -> Metric:
    """The metric of that name."""
    if name not in METRICS:
        raise InputError(f"metric {name!r} does not exist{nearest(name, METRICS)}")
    return METRICS[name]


def _alignment(reading: Reading, motion: Motion, wanted: Sequence[world.Wanted]) -> dict[str, np.ndarray]:
    with np.errstate(all="ignore"):
        colour = _nanmedian(reading.colour)
        area = _nanmedian(reading.area)
        likeness = np.nansum(reading.likeness, axis=1)
    background = np.median(reading.background, axis=1)
    seen = reading.visible.sum(1) >= BRIEFEST
    palettes = {"colour": (world.COLOURS, colour), "background": (world.BACKGROUNDS, background)}
    out = {"one_object": (reading.objects == 1).all(1).astype(float)}
    for name, (palette, found) in palettes.items():
        names, values = list(palette), np.array(list(palette.values()))
        closest = np.argmin(np.nan_to_num(((found[:, None] - values) ** 2).sum(-1), nan=np.inf), axis=1)
        out[name] = _compared([names[k] for k in closest], [getattr(want, name) for want in wanted])
    out["shape"] = _compared([world.SHAPES[k] for k in likeness.argmax(1)], [want.shape for want in wanted])
    out["direction"] = np.array([_moves(v, want) for v, want in zip(motion.velocity, wanted, strict=True)])
    sizes = np.array(list(world.AREAS.values()))
    nearest_size = np.argmin(np.abs(np.log(np.nan_to_num(area, nan=1.0)[:, None] / sizes)), axis=1)
    out["size"] = _compared([list(world.AREAS)[k] for k in nearest_size], [want.size for want in wanted])
    for name in ("colour", "shape", "direction", "size"):
        out[name][~seen & ~np.isnan(out[name])] = 0.0  # what cannot be read failed
    return out


def _nanmedian(values: np.ndarray) -> np.ndarray:
    """Over frames, axis 1; NaN, without a warning, where no frame has a value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmedian(values, axis=1)


def _compared(found: Sequence[str], wanted: Sequence[str | None]) -> np.ndarray:
    return np.array(
        [math.nan if want is None else float(seen == want) for seen, want in zip(found, wanted, strict=True)]
    )


def _moves(velocity: np.ndarray, wanted: world.Wanted) -> float:
    """Within 22.5 degrees and at least half the speed asked for; or still, under half of the slowest speed."""
    if wanted.motion is None:
        return math.nan
    speed = float(np.hypot(*velocity))
    if wanted.motion == world.STILL:
        return float(speed < 0.5 * SLOWEST)
    asked = SPEEDS.get(wanted.speed or "", SLOWEST)
    cosine = float(velocity @ np.asarray(world.DIRECTIONS[wanted.motion])) / max(speed, 1e-9)
    return float(speed >= 0.5 * asked and cosine >= math.cos(math.radians(22.5)))


def _temporal(reading: Reading, motion: Motion) -> dict[str, np.ndarray]:
    seen = reading.visible.sum(1) >= BRIEFEST
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # of slices that are NaN altogether
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


def _quality(
    frames: np.ndarray, reading: Reading, motion: Motion, wanted: Sequence[world.Wanted]
) -> dict[str, np.ndarray]:
    background = np.median(reading.background, axis=1)
    colour, area = _nanmedian(reading.colour), _nanmedian(reading.area)
    with np.errstate(all="ignore"):
        shape = np.nansum(reading.likeness, axis=1).argmax(1)
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
