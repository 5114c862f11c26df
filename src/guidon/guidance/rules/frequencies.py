"""Rules that guide slow and fast variations differently, over a frame or over time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...core.errors import InputError, setting
from .contract import Branches, Rule, Scale
from .plain import cfg

if TYPE_CHECKING:
    from torch import Tensor

MOST_LEVELS = 16
"""How often a frame or a clip is halved at most: no latent is larger than 2**16."""


@dataclass(frozen=True)
class FrequencyDecoupled(Rule):
    """Frequency-decoupled guidance (Sadat et al. 2506.19713): low spatial frequencies are guided less than high ones.
    Neutral: low 1.

    Low frequencies set colour and layout, and saturate. Their scale is 1 + low (s - 1). They are what is left of a
    frame that is halved ``levels`` times: one split of the paper's Laplacian pyramid, with bilinear filters.
    """

    name = "fdg"
    low: float = 0.5
    levels: int = 1

    def __post_init__(self) -> None:
        self._require("low", 0)
        self._require("levels", 1, MOST_LEVELS)

    @property
    def is_plain(self) -> bool:
        return self.low == 1

    def check_size(self, height: int, width: int) -> None:
        if min(height, width) < 2**self.levels:
            raise InputError(
                f"{setting('guidance')} fdg: latents of {height}x{width} cannot be halved {self.levels} times: give "
                "fewer levels"
            )

    def __call__(self, branches: Branches, scale: Scale) -> Tensor:
        from torch.nn import functional

        update = branches.cond - branches.uncond
        if update.ndim < 4:
            raise InputError(f"{setting('guidance')} fdg: latents {tuple(update.shape)} have no height and width")
        planes = update.flatten(0, -3)[:, None]
        self.check_size(planes.shape[-2], planes.shape[-1])
        half = 2**self.levels
        smaller = functional.adaptive_avg_pool2d(planes, (planes.shape[-2] // half, planes.shape[-1] // half))
        coarse = functional.interpolate(smaller, planes.shape[-2:], mode="bilinear").view_as(update)
        return branches.cond + (scale - 1) * (update + (self.low - 1) * coarse)


@dataclass(frozen=True)
class TemporalFrequencies(Rule):
    """Frequency-decoupled guidance over time, our own: slow and fast changes of a clip are guided by scales of their
    own. Neutral: slow 1 and fast 1; on images it is plain guidance.

    The slow part of the update is what is left of a clip whose frames are halved in number ``levels`` times, at the
    most down to one, and stretched again. Its scale is 1 + slow (s - 1); that of the rest, the fast part, is
    1 + fast (s - 1). It does over time what fdg (Sadat et al. 2506.19713) does over a frame.
    """

    name = "fdg-time"
    slow: float = 1.0
    fast: float = 0.5
    levels: int = 1

    def __post_init__(self) -> None:
        self._require("slow", 0)
        self._require("fast", 0)
        self._require("levels", 1, MOST_LEVELS)

    @property
    def is_plain(self) -> bool:
        return self.slow == self.fast == 1

    def __call__(self, branches: Branches, scale: Scale) -> Tensor:
        from torch.nn import functional

        update = branches.cond - branches.uncond
        if update.ndim < 4:
            raise InputError(f"{setting('guidance')} fdg-time: latents {tuple(update.shape)} do not show their frames")
        frames = update.shape[2] if update.ndim == 5 else 1
        if frames == 1:  # an image does not change
            return cfg(branches, scale)
        series = update.movedim(2, -1).flatten(0, -2)[:, None]  # (B C H W, 1, T)
        fewer = functional.adaptive_avg_pool1d(series, max(1, frames // 2**self.levels))
        slow = functional.interpolate(fewer, frames, mode="linear")
        slow = slow.view(*update.shape[:2], *update.shape[3:], frames).movedim(-1, 2)
        return branches.cond + (scale - 1) * (self.slow * slow + self.fast * (update - slow))
