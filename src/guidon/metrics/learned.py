"""The learned parts of a bench: what networks that others trained say of a clip.

Consistency is VBench's (2311.17982, subject and background consistency). Each number says how alike frames are, so a
frozen clip is perfect: read them beside ``dynamics`` of the bench ``video``, which is measured with them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import InputError
from .choice import PARTS, learned_parts
from .metric import COSINE, Bench, Goal, Metric, Values, named

if TYPE_CHECKING:
    import torch

    from ..models.stages import Stage
    from .networks import AestheticHead, FrameEncoder, FrameTextEncoder, Lpips

NO_CAPTION = "there is no caption, or it is the number of a class"
ONE_FRAME = "the clip has one frame"
METRICS: dict[str, dict[str, Metric]] = {
    "clip": named(
        Metric(
            "text_alignment", "alignment", COSINE, (-1, 1), "higher",
            "cosine between the features of CLIP (or SigLIP) for the caption and for a frame, mean over frames",
            NO_CAPTION,
            label="fit to the prompt", words="how well the frames fit the prompt, by a network of pictures and texts",
        ),
        Metric(
            "text_alignment_worst", "alignment", COSINE, (-1, 1), "higher", "text_alignment of its worst frame",
            NO_CAPTION,
            label="fit of the worst frame", words="how well the frame that fits least fits the prompt",
        ),
        Metric(
            "background_consistency", "temporal", COSINE, (0, 1), "higher",
            "cosine between CLIP's (or SigLIP's) features of a frame and of the first one, and of the one before; "
            "negative ones count as 0; mean of both and over frames",
            ONE_FRAME,
            label="consistency of the scene",
            words="how alike the frames are as scenes; a still clip is perfect, so read it beside the amount of motion",
        ),
    ),
    "dino": named(
        Metric(
            "subject_consistency", "temporal", COSINE, (0, 1), "higher",
            "as background_consistency, by the features of DINO",
            ONE_FRAME,
            label="consistency of the subject",
            words="how alike the frames are in what they show; a still clip is perfect, so read it beside the amount "
            "of motion",
        ),
    ),
    "lpips": named(
        Metric(
            "lpips_next", "temporal", "LPIPS", (0, math.inf), "lower",
            "perceptual distance (LPIPS) between a frame and the one before, mean over frames", ONE_FRAME,
            label="visible change per frame",
            words="how much an eye sees change from frame to frame, by motion or by flicker; a still clip has none",
        ),
        Metric(
            "lpips_first", "temporal", "LPIPS", (0, math.inf), None,
            "perceptual distance (LPIPS) between a frame and the first one, mean over frames", ONE_FRAME,
            label="visible change from the start", words="how far the frames get from the first one for an eye",
        ),
    ),
    "aesthetic": named(
        Metric(
            "aesthetic", "quality", "score", (-math.inf, math.inf), "higher",
            "LAION's aesthetic head on the features of CLIP, mean over frames",
            label="beauty", words="the score from about 1 to 10 that people would give the frames, by a network",
        ),
    ),
}  # fmt: skip
"""By part, its metrics."""


def consistency(features: np.ndarray) -> float:
    """How alike the frames of a clip are: VBench's definition.

    Args:
        features: (T, F), of each frame.

    Returns:
        The mean over frames t >= 1 of (max(0, cos(f_t, f_0)) + max(0, cos(f_t, f_{t-1}))) / 2; NaN for one frame.
    """
    if len(features) < 2:
        return math.nan
    unit = features.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    first, before = unit[1:] @ unit[0], (unit[1:] * unit[:-1]).sum(1)
    # VBench, subject_consistency.py and background_consistency.py
    return float(np.clip((first, before), 0, 1).mean())


@dataclass(frozen=True)
class Judges:
    """The networks that measure the learned parts. Each is loaded when it is first used."""

    clip: Stage[[], FrameTextEncoder] | None = None
    dino: Stage[[], FrameEncoder] | None = None
    lpips: Stage[[], Lpips] | None = None
    aesthetic: Stage[[], AestheticHead] | None = None

    @classmethod
    def of(cls, places: Mapping[str, Path], device: torch.device | str, keep: bool) -> Judges:
        """The networks of the weights in ``places``, by part.

        Args:
            places: see ``choice.find_weights``.
            device: where they run.
            keep: whether a network stays in memory after use.
        """
        from ..models.stages import Stage
        from .networks import AestheticHead, FrameEncoder, FrameTextEncoder, Lpips

        readers = {"clip": FrameTextEncoder, "dino": FrameEncoder, "lpips": Lpips, "aesthetic": AestheticHead}
        return cls(**{
            name: Stage(lambda read=readers[name].load, place=place: read(place, device), keep)
            for name, place in places.items()
        })  # fmt: skip

    def measure(self, frames: np.ndarray, captions: Sequence[str]) -> Values:
        """The metrics of all parts that have a network.

        Args:
            frames: uint8 (N, T, H, W, 3).
            captions: N texts.

        Returns:
            (N,) for each metric.

        Raises:
            InputError: weights cannot be read, or do not fit each other, or the frames are too small for LPIPS.
        """
        values: Values = {}
        if self.clip is not None:
            with self.clip.in_use() as clip:
                seen = [clip.frames(own) for own in frames]
                said = {text: clip.text(text) for text in set(captions) if _says_something(text)}
            fits = [picture @ said[text] if text in said else np.full(1, np.nan)
                    for picture, text in zip(seen, captions, strict=True)]  # fmt: skip
            values["text_alignment"] = np.array([own.mean() for own in fits])
            values["text_alignment_worst"] = np.array([own.min() for own in fits])
            values["background_consistency"] = np.array([consistency(own) for own in seen])
            if self.aesthetic is not None:
                with self.aesthetic.in_use() as head:
                    values["aesthetic"] = np.array([head.score(own).mean() for own in seen])
        if self.dino is not None:
            with self.dino.in_use() as dino:
                values["subject_consistency"] = np.array([consistency(dino.frames(own)) for own in frames])
        if self.lpips is not None:
            with self.lpips.in_use() as lpips:
                both = np.array([lpips.changes(own) for own in frames])
            values["lpips_next"], values["lpips_first"] = both[:, 0], both[:, 1]
        return values


def _says_something(caption: str) -> bool:
    """Whether a caption describes a picture: it is not empty and not the number of a class."""
    text = caption.strip()
    return bool(text) and not text.isdecimal()


def with_learned(base: Bench, name: str) -> Bench:
    """A base bench with the learned parts of a full name. It has no networks yet and refuses to measure."""
    own = {metric: found for part in learned_parts(name) for metric, found in METRICS[part].items()}

    def refuse(frames: np.ndarray, captions: Sequence[str]) -> Values:
        raise InputError(f"the bench {name} needs weights: open it with guidon.metrics.bench.open_bench")

    fronts = tuple(pair for pair in FRONTS if {*pair} <= {*own, *base.metrics})
    return replace(
        base, name=name, metrics={**own, **base.metrics}, measure=refuse, shown=(*own, *base.shown),
        primary=next(iter(own)), fronts=(*fronts, *base.fronts),
        goal=base.goal or (_fit({**own, **base.metrics}) if FIT.keep in own else None),
    )  # fmt: skip


def _fit(metrics: Mapping[str, Metric]) -> Goal:
    """``FIT`` for a bench that has these metrics."""
    return replace(FIT, lower={name: value for name, value in FIT.lower.items() if name in metrics})


FIT = Goal(
    keep="text_alignment",
    lower={
        "clipped": lambda values: values["clipped"],
        "interpolation_error": lambda values: values["interpolation_error"],
    },
    forgiven=0.002,
    margin=0.005,
)
"""The goal of any video, where a network tells how well it fits its prompt: less oversaturation, and frames that follow
from their neighbours. The losses are cosines, of which CLIP's are about 0.3."""


FRONTS = (("subject_consistency", "dynamics"), ("subject_consistency", "speed"), ("text_alignment", "dynamics"))
"""Pairs of metrics whose trade-off a report plots, where a bench has both."""
assert set(METRICS) == set(PARTS)
