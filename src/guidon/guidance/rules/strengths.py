"""Rules whose scale follows from how far apart the branches are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .contract import Branches, Rule, Scale
from .geometry import norm

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class MagnitudeAware(Rule):
    """MAMBO-G (Zhu et al. 2508.03442; the formula is in the paper's summary and in diffusers). Neutral: alpha 0.

    Where the branches are far apart, as in the first steps, the scale is lowered: it is 1 + (s - 1) exp(-alpha r), with
    r = |cond - uncond| / |uncond|, per sample. The authors' settings are scale 10 and alpha 8.
    """

    name = "mambo-g"
    space = "noise"
    alpha: float = 8.0

    def __post_init__(self) -> None:
        self._require("alpha", 0)

    @property
    def is_plain(self) -> bool:
        return not self.alpha

    def __call__(self, branches: Branches, scale: Scale) -> Tensor:
        import torch

        update = branches.cond - branches.uncond
        ratio = norm(update) / norm(branches.uncond).clamp_min(1e-12)
        return branches.uncond + (1 + (scale - 1) * torch.exp(-self.alpha * ratio)) * update


@dataclass(frozen=True)
class SpatialAdaptive(Rule):
    """SAMG, a scale for every latent pixel (Li et al. 2604.26503, after the abstract and an independent implementation
    for ComfyUI). Neutral: low 1 and high 1.

    The energy of guidance at a pixel is the mean of (cond - uncond)^2 over the guided channels. It is mapped to e in
    [0, 1] over one sample, all frames together. The scale there is s (high - (high - low) e): low where guidance would
    change much, such as at edges, high elsewhere. By default no pixel has more than s. The authors' range for Stable
    Diffusion, 5 to 12 at scale 7.5, is low 0.667 and high 1.6.
    """

    name = "samg"
    low: float = 2 / 3
    high: float = 1.0

    def __post_init__(self) -> None:
        self._require("low", 0)
        self._require("high", 0)

    @property
    def is_plain(self) -> bool:
        return self.low == self.high == 1

    def __call__(self, branches: Branches, scale: Scale) -> Tensor:
        update = branches.cond - branches.uncond
        energy = update.square().mean(1, keepdim=True)
        points = tuple(range(1, energy.ndim))
        least, most = energy.amin(points, keepdim=True), energy.amax(points, keepdim=True)
        share = (energy - least) / (most - least).clamp_min(1e-30)
        return branches.uncond + scale * (self.high - (self.high - self.low) * share) * update
